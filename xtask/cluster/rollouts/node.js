// A server without shutdown code, and clients that keep their connections, of Node's own HTTP library.
//
// `node node.js serve` answers on port 80 after 200 ms. `node node.js ask CONNECTIONS NAME=URL…` asks each on so many
// connections, with pauses of 300 to 600 ms, and prints a report every second: requests and errors by name. With
// `ask-h2c` it speaks HTTP/2 in clear text, and $PARALLEL requests share each connection.
"use strict";
const http = require("http");
const http2 = require("http2");

function serve() {
  const server = http.createServer((request, response) => {
    request.resume();
    setTimeout(() => {
      response.write("one half, ");
      setTimeout(() => response.end("and the other"), 100);
    }, 100);
  });
  server.keepAliveTimeout = 0;
  server.listen(80);
}

function once(url, agent) {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method: "POST", agent, timeout: 10_000 }, (response) => {
      response.resume();
      response.on("error", reject);
      response.on("aborted", () => reject(new Error("aborted")));
      response.on("end", () =>
        response.statusCode === 200 && response.complete ? resolve() : reject(new Error(`status ${response.statusCode}`)));
    });
    request.on("error", reject);
    request.on("timeout", () => request.destroy(new Error("timeout")));
    request.end("ask");
  });
}

// Its requests by HTTP/1.1, on one connection.
function http1(url) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  return () => once(url, agent);
}

// By HTTP/2: a session that was asked to leave is closed for new requests.
function h2c(url) {
  let session;
  return () =>
    new Promise((resolve, reject) => {
      if (!session || session.closed || session.destroyed) {
        session = http2.connect(url);
        session.on("error", () => {});
      }
      let status = 0;
      const request = session.request({ ":method": "POST", ":path": "/" });
      request.setTimeout(10_000, () => request.destroy(new Error("timeout")));
      request.on("response", (headers) => (status = headers[":status"]));
      request.on("error", reject);
      request.on("end", () => (status === 200 ? resolve() : reject(new Error(`status ${status}`))));
      request.resume();
      request.end("ask");
    });
}

async function ask(count, once) {
  for (;;) {
    count.requests += 1;
    try {
      await once();
    } catch (error) {
      count.errors += 1;
      count.last = String(error);
    }
    await new Promise((resolve) => setTimeout(resolve, 300 + Math.random() * 300));
  }
}

const [what, connections, ...targets] = process.argv.slice(2);
if (what === "serve") {
  serve();
} else {
  const counts = {};
  for (const target of targets) {
    const [name, url] = target.split("=");
    counts[name] = { requests: 0, errors: 0, last: "" };
    for (let i = 0; i < Number(connections); i += 1) {
      const once = what === "ask-h2c" ? h2c(url) : http1(url);
      for (let j = 0; j < Number(process.env.PARALLEL || 1); j += 1) {
        ask(counts[name], once);
      }
    }
  }
  setInterval(() => console.log(JSON.stringify(counts)), 1000);
}
