# An event every half second on each connection, numbered by the clock.
import asyncio
import sys
import time

import websockets


async def events(socket):
    while True:
        now = 2 * time.time()
        number = int(now) + 1
        await asyncio.sleep((number - now) / 2)
        await socket.send(str(number))


async def main():
    async with websockets.serve(events, "0.0.0.0", int(sys.argv[1])):
        await asyncio.Future()


asyncio.run(main())
