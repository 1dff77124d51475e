"use strict";

// Serves word_count.js by the protocol in docs/other-languages.md, in plain Node.js.

const { createHash, timingSafeEqual } = require("node:crypto");
const http = require("node:http");
const { parseArgs } = require("node:util");

const flow = require("./word_count.js");

const OUTPUT = "${line.output}";

const calls = {
  "GET /health": async () => ({ status: "healthy" }),
  "POST /execution": async ({ inputs }) => {
    const output = await flow.line(inputs);
    return { output, aggregation_inputs: { [OUTPUT]: output }, run_info: { status: "Completed" } };
  },
  "POST /aggregation": async ({ aggregation_inputs }) => flow.aggregate(aggregation_inputs[OUTPUT] ?? []),
};

function errorOf(error, code, innerCode) {
  const message = `Execution failure in 'word_count': (${error.name}) ${error.message}`;
  return { message, code, innerError: { code: innerCode, innerError: null }, referenceCode: "Tool/word_count" };
}

async function bodyOf(request) {
  const parts = [];
  for await (const part of request) {
    parts.push(part);
  }
  return parts.length ? JSON.parse(Buffer.concat(parts).toString("utf8")) : {};
}

const digest = (text) => createHash("sha256").update(text).digest();
const expected = digest(`Bearer ${process.env.BATCHFLOW_SERVICE_TOKEN}`);
delete process.env.BATCHFLOW_SERVICE_TOKEN; // not for the programs that the flow starts

/** Whether a call comes from the run that started this process: other processes of this machine reach the port, too. */
function isOfRun(request) {
  return timingSafeEqual(digest(request.headers.authorization ?? ""), expected);
}

async function answer(request, response) {
  if (!isOfRun(request)) {
    response.writeHead(401, { "Content-Type": "application/json" });
    response.end(JSON.stringify({ error: errorOf(new Error("no call of this run"), "SystemError", "Unauthorized") }));
    return;
  }
  const call = calls[`${request.method} ${request.url}`];
  let status = 200;
  let body;
  try {
    const given = await bodyOf(request);
    if (call === undefined) {
      status = 404;
      body = { error: errorOf(new Error(`no ${request.method} ${request.url} here`), "SystemError", "NotFound") };
    } else {
      body = await call(given);
    }
  } catch (error) {
    status = 500;
    body = { error: errorOf(error, "UserError", "ScriptExecutionError") };
  }
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(body));
}

const { values } = parseArgs({ options: { port: { type: "string" } } });
const server = http.createServer(answer);
server.listen(Number(values.port), "127.0.0.1");
process.on("SIGTERM", () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
