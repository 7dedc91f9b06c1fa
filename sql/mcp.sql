-- The Model Context Protocol: this database as a server of it, for whoever calls.

create function helper.mcp(request jsonb, workspace uuid default null, approvals boolean default false) returns jsonb
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'answer_mcp_wrapper';
comment on function helper.mcp(jsonb, uuid, boolean) is
  'Answers one message of the Model Context Protocol (revisions 2025-03-26 to 2025-11-25 with their handshake, and 2026-07-28) as the caller: tools (calls that need an approval wait for one), documents as resources, modes as prompts. approvals: the tools confirm_call and reject_call are offered too, for a client whose user is asked before each tool is run and has chosen so; a client that runs what its model says would let the model approve. Null for a notification. What goes wrong is a JSON-RPC error or a result with isError; raised are only 22023 where request is null, and what ends a statement, such as 57014';
