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
comment on column helper.reply.grounded is 'False: the documents do not answer';
comment on column helper.reply.conversation_id is 'The conversation, made if none was given';
comment on column helper.reply.message_id is 'The answer''s message';
comment on column helper.reply.status is 'done';
comment on column helper.reply.provider is 'Who answered: local extracts sentences and is no language model';
comment on column helper.reply.model is 'The provider''s model';
comment on column helper.reply.usage is 'input_tokens, output_tokens, cost';
comment on column helper.reply.tool_calls is 'Tools that were called; none by the local provider';

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
  'Answers a question from the documents that the caller may see, with citations, and stores both in a conversation. options: k (passages, 1 to 50), source_types, filter. Errors: 22023, 42704, 55000, 57014';

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
