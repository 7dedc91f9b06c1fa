// Starts the front: DATABASE_URL and JWT_SECRET must be set; HOST, PORT and ORIGINS (with commas) may be.

import { front } from "./front.js";

const { DATABASE_URL, JWT_SECRET, HOST = "127.0.0.1", PORT = "8787", ORIGINS = "" } = process.env;
if (!DATABASE_URL || !JWT_SECRET) {
  console.error("DATABASE_URL and JWT_SECRET must be set");
  process.exit(2);
}
const origins = ORIGINS.split(",").filter((origin) => origin !== "");
const server = front({ databaseUrl: DATABASE_URL, jwtSecret: JWT_SECRET, origins });
server.listen(Number(PORT), HOST, () => console.log(`http://${HOST}:${PORT}/mcp`));
