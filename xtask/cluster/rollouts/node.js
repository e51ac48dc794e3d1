// A server without shutdown code, and clients that keep their connections, of Node's own HTTP library.
//
// `node node.js serve` answers on port 80 after 200 ms. `node node.js ask CONNECTIONS NAME=URL…` asks each on so many
// connections, with pauses of 300 to 600 ms, and prints a report every second: requests and errors by name.
"use strict";
const http = require("http");

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

async function ask(count, url) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  for (;;) {
    count.requests += 1;
    try {
      await once(url, agent);
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
      ask(counts[name], url);
    }
  }
  setInterval(() => console.log(JSON.stringify(counts)), 1000);
}
