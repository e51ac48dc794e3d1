"""A server without shutdown code of aiohttp, and clients that keep their connections, of aiohttp and grpcio.

`serve` answers on port 80 after 200 ms. `ask CONNECTIONS NAME=URL…` and `ask-grpc CONNECTIONS NAME=ADDRESS…` ask each
on so many connections, with pauses of 300 to 600 ms, and print a report every second: requests and errors by name.
With $PARALLEL so many calls share each connection of grpcio.
"""

import asyncio
import json
import os
import random
import sys


async def serve():
    from aiohttp import web

    async def answer(request):
        await request.read()
        response = web.StreamResponse()
        await asyncio.sleep(0.1)
        await response.prepare(request)
        await response.write(b"one half, ")
        await asyncio.sleep(0.1)
        await response.write(b"and the other")
        await response.write_eof()
        return response

    application = web.Application()
    application.router.add_post("/", answer)
    # `web.run_app` would end connections well at SIGTERM.
    runner = web.AppRunner(application, keepalive_timeout=3600)
    await runner.setup()
    await web.TCPSite(runner, port=80).start()
    await asyncio.Event().wait()


async def http_client(url):
    import aiohttp

    connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=3600)
    session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10))

    async def once():
        async with session.post(url, data=b"ask") as response:
            await response.read()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}")

    return once


async def grpc_client(address):
    import grpc.aio

    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(address, options=options)
    check = channel.unary_unary("/grpc.health.v1.Health/Check", lambda request: request, lambda answer: answer)

    async def once():
        await check(b"", timeout=10)

    return once


async def ask(connect, connections, targets):
    counts = {}

    async def repeat(count, once):
        while True:
            count["requests"] += 1
            try:
                await once()
            except Exception as error:  # Whatever it is, the request has failed.
                count["errors"] += 1
                count["last"] = repr(error)
            await asyncio.sleep(0.3 + random.random() * 0.3)

    tasks = []
    for target in targets:
        name, address = target.split("=")
        counts[name] = {"requests": 0, "errors": 0, "last": ""}
        for _ in range(connections):
            once = await connect(address)
            for _ in range(int(os.environ.get("PARALLEL", "1"))):
                tasks.append(asyncio.create_task(repeat(counts[name], once)))
    while True:
        await asyncio.sleep(1)
        print(json.dumps(counts), flush=True)


what, *rest = sys.argv[1:]
if what == "serve":
    asyncio.run(serve())
else:
    client = grpc_client if what == "ask-grpc" else http_client
    asyncio.run(ask(client, int(rest[0]), rest[1:]))
