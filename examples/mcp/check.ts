// Has the official client use the front as two people, and fails where it does not get what it should. It is given a
// database in which tests/mcp.rs has made the people, a document and the tools: DATABASE_URL, ANN, BEA, DOCUMENT.

import assert from "node:assert/strict";
import type { AddressInfo } from "node:net";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { SignJWT } from "jose";
import { front } from "./front.js";

const { DATABASE_URL = "", ANN = "", BEA = "", DOCUMENT = "" } = process.env;
const jwtSecret = "a secret of the check that has more than 32 bytes";
const server = front({ databaseUrl: DATABASE_URL, jwtSecret });
await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
const url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/mcp`);

function token(claims: Record<string, unknown>, secret = jwtSecret): Promise<string> {
  const signed = new SignJWT(claims).setProtectedHeader({ alg: "HS256" }).setIssuedAt().setExpirationTime("5 minutes");
  return signed.sign(new TextEncoder().encode(secret));
}

async function connect(person: string, approvals = true): Promise<Client> {
  const client = new Client({ name: "check", version: "1" });
  const authorization = `Bearer ${await token({ sub: person, role: "authenticated", mcp_approvals: approvals })}`;
  await client.connect(new StreamableHTTPClientTransport(url, { requestInit: { headers: { authorization } } }));
  return client;
}

async function everything<T>(list: (cursor?: string) => Promise<{ nextCursor?: string; all: T[] }>): Promise<T[]> {
  const all: T[] = [];
  let cursor: string | undefined;
  do {
    const page = await list(cursor);
    all.push(...page.all);
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  return all;
}

const ann = await connect(ANN);
const bea = await connect(BEA);

const checks: Record<string, () => Promise<void>> = {
  async "the server says who it is and what it does"() {
    assert.equal(ann.getServerVersion()?.name, "helper_ai");
    assert.ok(ann.getInstructions());
    assert.deepEqual(Object.keys(ann.getServerCapabilities() ?? {}).sort(), ["completions", "logging", "prompts", "resources", "tools"]);
    await ann.ping();
    await ann.setLoggingLevel("info");
  },

  async "tools are listed in pages, each once, with their schemas"() {
    const tools = await everything(async (cursor) => {
      const page = await ann.listTools({ cursor });
      return { nextCursor: page.nextCursor, all: page.tools };
    });
    const names = tools.map((tool) => tool.name);
    assert.equal(new Set(names).size, names.length);
    assert.ok(names.length > 120, `${names.length} tools`);
    const add = tools.find((tool) => tool.name === "add_up");
    assert.deepEqual(add?.inputSchema.required, ["a", "b"]);
    assert.deepEqual([add?.annotations?.readOnlyHint, add?.title], [true, "Add up"]);
    assert.ok(names.includes("confirm_call") && names.includes("reject_call"));
    const { tools: first } = await (await connect(ANN, false)).listTools();
    assert.ok(!first.some((tool) => ["confirm_call", "reject_call"].includes(tool.name)));
  },

  async "a tool is called, and told what is wrong with its arguments"() {
    const sum = await ann.callTool({ name: "add_up", arguments: { a: 2, b: 3 } });
    assert.deepEqual([sum.structuredContent, sum.isError], [{ sum: 5 }, false]);
    const wrong = await ann.callTool({ name: "add_up", arguments: { a: "two", b: 3 } });
    assert.equal(wrong.isError, true);
    assert.match(JSON.stringify(wrong.content), /22023/);
    await assert.rejects(ann.callTool({ name: "no_such_tool" }), /-32602/);
  },

  async "a document is read by who may see it"() {
    const { resources } = await ann.listResources();
    assert.ok(resources.some((resource) => resource.uri === `helper://documents/${DOCUMENT}`));
    const read = await ann.readResource({ uri: `helper://documents/${DOCUMENT}` });
    assert.match(JSON.stringify(read.contents), /within ten days/);
    const { resourceTemplates } = await ann.listResourceTemplates();
    assert.equal(resourceTemplates[0]?.uriTemplate, "helper://documents/{id}");
  },

  async "a mode is a prompt"() {
    const { prompts } = await ann.listPrompts();
    assert.ok(prompts.some((prompt) => prompt.name === "summary"));
    const prompt = await ann.getPrompt({ name: "summary", arguments: { question: "What of refunds?" } });
    assert.match(JSON.stringify(prompt.messages), /Summarise .*What of refunds\?/);
    const suggested = await ann.complete({ ref: { type: "ref/prompt", name: "summary" }, argument: { name: "question", value: "W" } });
    assert.deepEqual(suggested.completion.values, []);
  },

  async "a call that needs an approval waits for it, and is done once"() {
    const asked = await ann.callTool({ name: "add_note", arguments: { body: "Ask for an offer" } });
    const { call, status } = asked.structuredContent as { call: string; status: string };
    assert.equal(status, "awaiting_confirmation");
    const before = await ann.callTool({ name: "count_notes", arguments: {} });
    assert.deepEqual(before.structuredContent, { notes: 0 });
    const done = await ann.callTool({ name: "confirm_call", arguments: { call } });
    assert.deepEqual([done.structuredContent, done.isError], [{ added: true }, false]);
    await ann.callTool({ name: "confirm_call", arguments: { call } });
    const after = await ann.callTool({ name: "count_notes", arguments: {} });
    assert.deepEqual(after.structuredContent, { notes: 1 });
  },

  async "a rejected call is never done"() {
    const asked = await ann.callTool({ name: "add_note", arguments: { body: "Nonsense" } });
    const { call } = asked.structuredContent as { call: string };
    await ann.callTool({ name: "reject_call", arguments: { call, reason: "nonsense" } });
    const late = await ann.callTool({ name: "confirm_call", arguments: { call } });
    assert.equal(late.isError, true);
    const after = await ann.callTool({ name: "count_notes", arguments: {} });
    assert.deepEqual(after.structuredContent, { notes: 1 });
  },

  async "a person of another workspace sees and does nothing here"() {
    assert.deepEqual((await bea.listResources()).resources, []);
    await assert.rejects(bea.readResource({ uri: `helper://documents/${DOCUMENT}` }), /-32002/);
    const asked = await ann.callTool({ name: "add_note", arguments: { body: "Mine" } });
    const { call } = asked.structuredContent as { call: string };
    for (const name of ["confirm_call", "reject_call", "call_status"]) {
      const other = await bea.callTool({ name, arguments: { call } });
      assert.equal(other.isError, true, name);
    }
    assert.deepEqual((await bea.callTool({ name: "count_notes", arguments: {} })).structuredContent, { notes: 0 });
  },

  async "whoever has no valid token, or comes from elsewhere, is refused"() {
    const message = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "tools/list" });
    const post = async (headers: Record<string, string>, body = message) =>
      (await fetch(url, { method: "POST", headers: { "content-type": "application/json", ...headers }, body })).status;
    const bearer = async (claims: Record<string, string>, secret?: string) => ({ authorization: `Bearer ${await token(claims, secret)}` });
    const good = await bearer({ sub: ANN, role: "authenticated" });
    assert.equal(await post(good), 200);
    assert.equal(await post({}), 401);
    assert.equal(await post(await bearer({ sub: ANN, role: "authenticated" }, "another secret that has more than 32 bytes")), 401);
    assert.equal(await post({ authorization: "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0." }), 401);
    assert.equal(await post(await bearer({ sub: ANN, role: "service_role" })), 403);
    assert.equal(await post({ ...good, origin: "https://elsewhere.example" }), 403);
    assert.equal(await post({ ...good, "mcp-protocol-version": "1999-01-01" }), 400);
    assert.equal(await post(good, "{"), 400);
    assert.equal(await post(good, `[${message}]`), 400);
    assert.equal(await post(good, `"${"x".repeat(3_000_000)}"`).catch(() => 413), 413);
    assert.equal((await fetch(url, { headers: good })).status, 405);
  },

  async "a revision without a handshake is spoken too, and its headers are checked"() {
    const version = "2026-07-28";
    const ask = async (method: string, params: object, headers: Record<string, string> = {}) => {
      const _meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": { elicitation: { form: {} } },
      };
      const authorization = `Bearer ${await token({ sub: ANN, role: "authenticated" })}`;
      const response = await fetch(url, {
        method: "POST",
        headers: { authorization, "mcp-protocol-version": version, "mcp-method": method, ...headers },
        body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params: { ...params, _meta } }),
      });
      return { status: response.status, said: (await response.json()) as any };
    };
    assert.ok((await ask("server/discover", {})).said.result.supportedVersions.includes(version));
    const unknown = await ask("initialize", {});
    assert.deepEqual([unknown.status, unknown.said.error.code], [404, -32601]);
    const mismatch = await ask("tools/list", {}, { "mcp-method": "ping" });
    assert.deepEqual([mismatch.status, mismatch.said.error.code], [400, -32020]);
    const call = { name: "add_note", arguments: { body: "Asked by a form" } };
    const name = { "mcp-name": "add_note" };
    const asked = await ask("tools/call", call, name);
    assert.equal(asked.said.result.resultType, "input_required");
    const { requestState } = asked.said.result;
    const inputResponses = { approval: { action: "accept", content: { approve: true } } };
    const done = await ask("tools/call", { ...call, requestState, inputResponses }, name);
    assert.deepEqual([done.said.result.resultType, done.said.result.structuredContent], ["complete", { added: true }]);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`not ok ${name}`);
    console.error(error);
  }
}
await Promise.all([ann.close(), bea.close()]);
server.close();
server.closeAllConnections();
process.exitCode = failed === 0 ? 0 : 1;
