-- Questions and answers. The functions leave the caller's search path alone, as an application's policies may need it;
-- what they do as the owner, they do with a path of their own.

create type helper.reply as (
  answer text,
  citations jsonb,
  grounded boolean,
  conversation_id uuid,
  message_id uuid,
  status text,
  provider text,
  model text,
  usage jsonb,
  tool_calls jsonb
);
comment on type helper.reply is 'What helper.answer returns';
comment on column helper.reply.answer is 'The answer, with marks such as [1]';
comment on column helper.reply.citations is 'For each mark: number, source_id, chunk_id, title, heading, quote, start_offset, end_offset, score; the quote is the document''s characters between the offsets';
comment on column helper.reply.grounded is 'False: the documents do not answer; null: a value of a mode with a schema, of which nobody can tell';
comment on column helper.reply.conversation_id is 'The conversation, made if none was given';
comment on column helper.reply.message_id is 'The answer''s message';
comment on column helper.reply.status is 'done, or awaiting_confirmation: the reply goes on by itself when its calls of tools are decided, see helper.confirm';
comment on column helper.reply.provider is 'Who answered: local extracts sentences and is no language model';
comment on column helper.reply.model is 'The provider''s model';
comment on column helper.reply.usage is 'input_tokens, output_tokens, cost; stop: why it ended (end, length: it was cut short, tool_calls)';
comment on column helper.reply.tool_calls is 'Tools that the model called, in order: id, function, arguments, status (done, error, awaiting_confirmation), call (its id in function_calls), error';

create function helper.answer(
  question text,
  conversation uuid default null,
  mode text default 'chat',
  knowledge boolean default true,
  model text default null,
  workspace uuid default null,
  options jsonb default '{}'
) returns helper.reply
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'answer_question_wrapper';
comment on function helper.answer(text, uuid, text, boolean, text, uuid, jsonb) is
  'Answers a question from the documents that the caller may see, with citations, and stores both in a conversation. model is model or provider/model, or local; null takes the default. options: k (passages, 1 to 50), source_types, filter, attachments, tools ("all", or names, product:slug and tag:word: what the model may call as the caller), limits (rounds, calls, seconds, cost), busy (wait, refuse), temperature, top_p, max_tokens, stop, timeout_ms. Errors: 22023, 38000, 42501, 42704, 53000, 53400, 55000, 57014';

create function helper.ask(
  question text,
  conversation uuid default null,
  mode text default 'chat',
  knowledge boolean default true,
  model text default null,
  workspace uuid default null,
  options jsonb default '{}'
) returns text
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'ask_question_wrapper';
comment on function helper.ask(text, uuid, text, boolean, text, uuid, jsonb) is
  'What helper.answer answers, as text, with the list of its sources below. Errors: as helper.answer';

create function helper.ask_stream(
  question text,
  conversation uuid default null,
  mode text default 'chat',
  knowledge boolean default true,
  model text default null,
  workspace uuid default null,
  options jsonb default '{}'
) returns table (event text, data jsonb)
language c volatile parallel unsafe rows 100 as 'MODULE_PATHNAME', 'ask_streaming_wrapper';
comment on function helper.ask_stream(text, uuid, text, boolean, text, uuid, jsonb) is
  'The same, told step by step: meta, delta (text) as often as words come, tool_call (id, function, arguments, status) when a tool is called and when it ended, error (sqlstate, message, detail, hint), done (status, citations, usage). Call it in the select list, or fetch from a cursor, to get each row as it comes. Errors: as helper.answer, before the first word';

create function helper.ask_async(
  question text,
  conversation uuid default null,
  mode text default 'chat',
  knowledge boolean default true,
  model text default null,
  workspace uuid default null,
  options jsonb default '{}'
) returns uuid
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'ask_queued_wrapper';
comment on function helper.ask_async(text, uuid, text, boolean, text, uuid, jsonb) is
  'The same, answered by the worker after the transaction commits: returns the id of the reply''s message, whose status goes from pending over streaming to done, awaiting_confirmation, error or cancelled; each change notifies channel helper_messages with that id. Errors: as helper.answer, but for those of the provider';

create function helper.complete(
  prompt text,
  system text default null,
  model text default null,
  options jsonb default '{}',
  workspace uuid default null
) returns text
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'complete_text_wrapper';
comment on function helper.complete(text, text, text, jsonb, uuid) is
  'What a language model says to a prompt, with no documents and no conversation. options: attachments (objects with mime_type, data in base64, name), temperature, top_p, max_tokens, stop, timeout_ms. Errors: 22023, 38000, 42704, 53000, 53400, 55000, 57014';

create function helper.complete_json(
  prompt text,
  schema jsonb,
  system text default null,
  model text default null,
  options jsonb default '{}',
  workspace uuid default null
) returns jsonb
language c volatile parallel unsafe as 'MODULE_PATHNAME', 'complete_value_wrapper';
comment on function helper.complete_json(text, jsonb, text, text, jsonb, uuid) is
  'What a language model says to a prompt, as a value that fits a JSON Schema (draft 2020-12): a reply that does not is sent back at most twice. Errors: as helper.complete, 38000 where it still does not fit, saying where';
