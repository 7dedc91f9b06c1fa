-- Conversations are private to their holder, and nobody writes a message but the extension.
\set SHOW_CONTEXT never
\set ON_ERROR_ROLLBACK on
\pset null -
set client_min_messages = warning;
set timezone = 'UTC';
do $$
begin
  if to_regrole('anon') is null then create role anon; end if;
  if to_regrole('authenticated') is null then create role authenticated; end if;
end
$$;
select helper.grant_usage('authenticated');
grant usage on schema helper to anon;
-- Ann owns Acme, Abe is its admin; Bea owns Bolt.
\set ann 00000000-0000-4000-8000-00000000000a
\set abe 00000000-0000-4000-8000-0000000000ab
\set bea 00000000-0000-4000-8000-00000000000b
\set acme 00000000-0000-7000-8000-0000000000a0
\set bolt 00000000-0000-7000-8000-0000000000b0
\set handbook 00000000-0000-7000-8000-0000000000d0
\set gone 00000000-0000-7000-8000-0000000000d1
create function pg_temp.be(person text) returns void language sql as $$
  select set_config('request.jwt.claims', jsonb_build_object('sub', person)::text, true)
$$;

begin;

insert into helper.workspaces (id, name, slug) values (:'acme', 'Acme', 'helper-test-acme'), (:'bolt', 'Bolt', 'helper-test-bolt');
insert into helper.workspace_members (workspace_id, user_id, role)
values (:'acme', :'ann', 'owner'), (:'acme', :'abe', 'admin'), (:'bolt', :'bea', 'owner');
insert into helper.knowledge_sources (workspace_id, id, source_type, title, input_hash)
values (:'acme', :'handbook', 'uploaded_doc', 'Handbook', '');

-- beginning a conversation, by function and by table
set local role anon;
select helper.create_conversation('Refunds');
set local role authenticated;
select helper.create_conversation('Refunds');
select pg_temp.be(:'abe');
select helper.create_conversation('Refunds') as refunds \gset
select helper.create_conversation(E' \n ', :'acme') as unnamed \gset
select helper.create_conversation('Theirs', :'bolt');
select helper.create_conversation(repeat('x', 501));
insert into helper.conversations (workspace_id, user_id, title) values (:'acme', :'abe', 'By table') returning title, message_count;
insert into helper.conversations (workspace_id, user_id, title) values (:'acme', :'ann', 'For Ann');
insert into helper.conversations (workspace_id, user_id, title) values (:'bolt', :'abe', 'In Bolt');
insert into helper.conversations (workspace_id, user_id, message_count) values (:'acme', :'abe', 7);
-- a client may choose the id, which is a key within the workspace
insert into helper.conversations (workspace_id, user_id, id, title) values (:'acme', :'abe', '00000000-0000-4000-8000-0000000000c0', 'Chosen');
delete from helper.conversations c where c.title = 'Chosen';
select title, user_id = :'abe' as abes, workspace_id = :'acme' as of_acme, message_count from helper.conversations order by id;

-- the extension writes messages, and only where the person holds the conversation
select helper._append_message(:'acme', :'refunds', :'abe', 'assistant', 'Forged');
reset role;
select helper._append_message(:'acme', :'refunds', :'abe', 'user', 'How do REFUNDS work for Indonesia?') is not null as appended;
select helper._append_message(:'acme', :'refunds', :'abe', 'assistant', E'Within 30 days [1].\nAsk support [2].', 'done', 'local', 'extractive', true, '{"input_tokens": 7}') as reply \gset
select helper._append_message(:'acme', :'refunds', :'abe', 'tool', 'secretword') is not null as appended;
select helper._append_message(:'acme', :'refunds', :'abe', 'assistant', null, 'pending') is not null as appended;
do $$
declare
  v_conversation uuid := (select c.id from helper.conversations c where c.title = 'Refunds' and c.user_id = '00000000-0000-4000-8000-0000000000ab');
  v_call record;
begin
  for v_call in
    select *
    from (values
      ('another person', '00000000-0000-7000-8000-0000000000a0'::uuid, '00000000-0000-4000-8000-00000000000a'::uuid, 'user', 'done'),
      ('another workspace', '00000000-0000-7000-8000-0000000000b0', '00000000-0000-4000-8000-0000000000ab', 'user', 'done'),
      ('an unknown role', '00000000-0000-7000-8000-0000000000a0', '00000000-0000-4000-8000-0000000000ab', 'boss', 'done'),
      ('an unknown status', '00000000-0000-7000-8000-0000000000a0', '00000000-0000-4000-8000-0000000000ab', 'user', 'fine')
    ) c (what, workspace, person, role, status)
  loop
    begin
      perform helper._append_message(v_call.workspace, v_conversation, v_call.person, v_call.role, 'x', v_call.status);
      raise warning '%: written', v_call.what;
    exception
      when undefined_object or check_violation then
        raise warning '%: %', v_call.what, sqlstate;
    end;
  end loop;
end
$$;
-- not even with our rights into another tenant's conversation
\set VERBOSITY sqlstate
insert into helper.messages (workspace_id, conversation_id, role) values (:'bolt', :'refunds', 'assistant');
\set VERBOSITY default
select helper._append_citation(:'acme', :'reply', :'abe', 1, :'handbook', null, 0, 25, E'Refunds within\n30 days.', 'Handbook', 0.9) is not null as cited;
select helper._append_citation(:'acme', :'reply', :'abe', 2, :'gone', null, 0, 4, 'Gone', 'Withdrawn') is not null as cited;
select helper._append_citation(:'acme', '00000000-0000-7000-8000-0000000000ff', :'abe', 3, :'handbook', null, 0, 4, 'x', 'Handbook');
select title, message_count, last_message_at > created_at as moved from helper.conversations where id = :'refunds';

-- the holder sees it all, but citations of documents that are no longer seen
set local role authenticated;
select role, status, grounded, provider, model, usage, completed_at is not null as completed from helper.messages order by id;
select ordinal, title, quote from helper.message_citations order by ordinal;
-- and writes none of it
insert into helper.messages (workspace_id, conversation_id, role, content) values (:'acme', :'refunds', 'user', 'Forged');
update helper.messages set content = 'Forged';
delete from helper.messages;
insert into helper.message_citations (workspace_id, message_id, ordinal, source_id) values (:'acme', :'reply', 9, :'handbook');
update helper.message_citations set quote = 'Forged';
update helper.conversations set message_count = 0;
update helper.conversations set user_id = :'ann';
update helper.conversations set workspace_id = :'bolt';
\set VERBOSITY sqlstate
update helper.conversations set title = E' \n' where id = :'unnamed';
\set VERBOSITY default
update helper.conversations set metadata = '{"pinned": true}' where id = :'unnamed' returning metadata;

-- renaming
select helper.rename_conversation(:'unnamed', ' Shipping ');
select helper.rename_conversation(:'unnamed', '  ');
select helper.rename_conversation(:'unnamed', null);
select helper.rename_conversation('00000000-0000-7000-8000-0000000000ff', 'x');

-- listing, by pages
select title, message_count from helper.list_conversations();
select title from helper.list_conversations("limit" => 1);
select l.title
from helper.list_conversations("limit" => 1) f, helper.list_conversations(:'acme', 50, f.last_message_at) l;
select title from helper.list_conversations("limit" => 0);
select title from helper.list_conversations(:'bolt');

-- searching: titles and what user and assistant said, whatever the case
select title, snippet from helper.search_conversations('refunds');
select title, snippet from helper.search_conversations('INDONESIA');
select title, snippet from helper.search_conversations('"30 days"');
select title from helper.search_conversations('shipping or support');
select title from helper.search_conversations('work -indonesia');
select title from helper.search_conversations('secretword');
select title from helper.search_conversations('---');
select title from helper.search_conversations(' ');
select title from helper.search_conversations('x', "limit" => 5000);

-- exporting
select regexp_replace(helper.export_conversation(:'refunds'), '\d{4}-\d\d-\d\d \d\d:\d\d', 'DAY', 'g') as markdown \g (format=unaligned)
select j ->> 'title' as title, j #> '{messages,1,role}' as role, j #> '{messages,1,citations,0,quote}' as quote, jsonb_array_length(j -> 'messages') as messages,
  jsonb_array_length(j #> '{messages,1,citations}') as citations
from (select helper.export_conversation(:'refunds', 'json')::jsonb as j) e;
select helper.export_conversation(:'unnamed');
select helper.export_conversation(:'refunds', 'pdf');

-- nobody else sees it: not the workspace's owner, not another tenant, not anon
select pg_temp.be(:'ann');
select count(*) from helper.conversations;
select count(*) from helper.messages;
select count(*) from helper.message_citations;
update helper.conversations set title = 'Mine' returning title;
delete from helper.conversations returning title;
select count(*) from helper.list_conversations();
select count(*) from helper.search_conversations('refunds');
\set VERBOSITY sqlstate
select helper.export_conversation(:'refunds');
\set VERBOSITY default
set local role anon;
select count(*) from helper.conversations;
-- the functions act for the caller even where row-level security is bypassed
reset role;
select count(*) from helper.list_conversations(:'acme');
\set VERBOSITY sqlstate
select helper.delete_conversation(:'refunds');
\set VERBOSITY default

-- nor does the holder, once out of the workspace
delete from helper.workspace_members where user_id = :'abe';
set local role authenticated;
select pg_temp.be(:'abe');
select count(*) from helper.conversations;
select count(*) from helper.messages;
select count(*) from helper.message_citations;
reset role;
insert into helper.workspace_members (workspace_id, user_id, role) values (:'acme', :'abe', 'viewer');

-- deleting
set local role authenticated;
select helper.delete_conversation(:'refunds');
select title from helper.conversations order by id;
reset role;
select count(*) from helper.messages where workspace_id = :'acme';
select count(*) from helper.message_citations where workspace_id = :'acme';

rollback;
