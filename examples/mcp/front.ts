// The Streamable HTTP endpoint of the Model Context Protocol at /mcp: who is asking is read from a signed token, and
// helper.mcp answers as them, in a transaction that has their role and claims. Nothing else is decided here.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { jwtVerify, type JWTPayload } from "jose";
import pg from "pg";

export interface Settings {
  /** A login role that may become the roles below and nothing more, such as Supabase's authenticator. */
  databaseUrl: string;
  /** Key of the tokens' signatures (HS256), at least 32 bytes. */
  jwtSecret: string;
  /** Roles that a token may name; service_role, which row-level security does not bind, must not be among them. */
  roles?: string[];
  /** Web pages whose scripts may ask; others that say where they come from are refused. */
  origins?: string[];
  /** What a request may take, in milliseconds. */
  timeout?: number;
}

const LONGEST = 2 * 1024 * 1024;
const REVISIONS = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26"];
const STATELESS = "2026-07-28";

/** An end before helper.mcp was asked. */
class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code = -32600,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }
}

type Json = Record<string, unknown>;

export function front(settings: Settings): Server {
  const key = new TextEncoder().encode(settings.jwtSecret);
  if (key.length < 32) {
    throw new Error("the key of the tokens has fewer than 32 bytes");
  }
  const pool = new pg.Pool({ connectionString: settings.databaseUrl, max: 10 });
  // A connection that breaks while nobody uses it is replaced by the next request.
  pool.on("error", () => {});
  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => {
      const refused = error instanceof Refused ? error : new Refused(500, "the server failed", -32603);
      if (refused !== error) {
        console.error(error);
      }
      const body = JSON.stringify({ jsonrpc: "2.0", error: { code: refused.code, message: refused.message } });
      // Whoever sends too much is not listened to any longer.
      const close: Record<string, string> = refused.status === 413 ? { connection: "close" } : {};
      response.writeHead(refused.status, { "content-type": "application/json", ...close, ...refused.headers });
      response.end(body);
    });
  });
  server.on("close", () => void pool.end());
  return server;

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const origin = request.headers.origin;
    if (origin !== undefined && !(settings.origins ?? []).includes(origin)) {
      throw new Refused(403, "the origin is not allowed");
    }
    if (new URL(request.url ?? "/", "http://front").pathname !== "/mcp") {
      throw new Refused(404, "there is nothing here");
    }
    if (request.method !== "POST") {
      throw new Refused(405, "only POST is answered", -32600, { allow: "POST" });
    }
    const claims = await caller(request);
    const message = parse(await body(request));
    checkHeaders(request, message);
    const said = await ask(claims, message);
    if (said === null) {
      response.writeHead(202).end();
      return;
    }
    response.writeHead(status(message, said), { "content-type": "application/json" }).end(said);
  }

  async function caller(request: IncomingMessage): Promise<JWTPayload> {
    const token = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? "")?.[1];
    const refuse = () => new Refused(401, "a valid bearer token is needed", -32600, { "www-authenticate": "Bearer" });
    if (token === undefined) {
      throw refuse();
    }
    const { payload } = await jwtVerify(token, key, { algorithms: ["HS256"], requiredClaims: ["sub", "role", "exp"] }).catch(() => {
      throw refuse();
    });
    if (!(settings.roles ?? ["authenticated"]).includes(String(payload.role))) {
      throw new Refused(403, "the token's role is not allowed");
    }
    return payload;
  }

  /** Has the database answer as the caller; null where there is nothing to say. */
  async function ask(claims: JWTPayload, message: unknown): Promise<string | null> {
    const client = await pool.connect();
    let broken: Error | undefined;
    try {
      await client.query("begin");
      await client.query(
        "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true), set_config('statement_timeout', $3, true)",
        [claims.role, JSON.stringify(claims), String(settings.timeout ?? 60_000)],
      );
      const result = await client.query<{ said: string | null }>("select helper.mcp($1::jsonb, approvals => $2)::text as said", [
        JSON.stringify(message),
        claims["mcp_approvals"] === true,
      ]);
      await client.query("commit");
      return result.rows[0]?.said ?? null;
    } catch (error) {
      await client.query("rollback").catch((other: Error) => (broken = other));
      throw error;
    } finally {
      client.release(broken);
    }
  }
}

async function body(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let length = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    length += part.length;
    if (length > LONGEST) {
      throw new Refused(413, "the message is too long");
    }
    parts.push(part);
  }
  return Buffer.concat(parts).toString("utf8");
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new Refused(400, "the message is not JSON", -32700);
  }
}

/** What a message says of itself in headers must be what it says of itself inside. */
function checkHeaders(request: IncomingMessage, message: unknown): void {
  const header = (name: string) => request.headers[name] as string | undefined;
  const version = header("mcp-protocol-version");
  const inside = revision(message);
  if (version !== undefined && !REVISIONS.includes(version) && inside === undefined) {
    throw new Refused(400, "the protocol's revision is not supported");
  }
  if (inside !== STATELESS && version !== STATELESS) {
    return;
  }
  const { method, params } = message as { method?: string; params?: Json };
  const names: Record<string, string> = { "tools/call": "name", "prompts/get": "name", "resources/read": "uri" };
  const expected: [string, unknown][] = [
    ["mcp-protocol-version", inside],
    ["mcp-method", method],
  ];
  const name = names[method ?? ""];
  if (name !== undefined) {
    expected.push(["mcp-name", params?.[name]]);
  }
  for (const [what, value] of expected) {
    if (plain(header(what)) !== value) {
      throw new Refused(400, `header ${what} is not what the message says`, -32020);
    }
  }
}

/** A header's value, which is in base64 where it could not stand in a header as it is. */
function plain(value: string | undefined): string | undefined {
  const encoded = /^=\?base64\?(.*)\?=$/.exec(value ?? "")?.[1];
  return encoded === undefined ? value : Buffer.from(encoded, "base64").toString("utf8");
}

/** The revision that a message of one without a handshake names. */
function revision(message: unknown): unknown {
  const meta = ((message as Json | null)?.params as Json | undefined)?._meta as Json | undefined;
  return meta?.["io.modelcontextprotocol/protocolVersion"];
}

/** The HTTP status of what was said. */
function status(message: unknown, said: string): number {
  const error = (JSON.parse(said) as { id?: unknown; error?: { code: number } }).error;
  if (error?.code === -32022 || error?.code === -32600) {
    return 400;
  }
  return error?.code === -32601 && revision(message) === STATELESS ? 404 : 200;
}
