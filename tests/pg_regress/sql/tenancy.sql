-- Who is asking, workspaces and members, seen from both sides.
\set SHOW_CONTEXT never
\set ON_ERROR_ROLLBACK on
\pset null -
set client_min_messages = warning;
do $$
begin
  if to_regrole('anon') is null then create role anon; end if;
  if to_regrole('authenticated') is null then create role authenticated; end if;
  if to_regrole('helper_test_clerk') is null then create role helper_test_clerk; end if;
end
$$;
select helper.grant_usage('authenticated');
select helper.grant_usage('helper_test_clerk');
grant usage on schema helper to anon;
grant execute on function helper.caller_claims(), helper.caller_role(), helper.current_user_id(), helper.my_workspaces(text),
  helper.is_member(uuid, text), helper.my_role(uuid) to anon;
-- Ann owns Acme, Abe is its admin, Max a member, Vic a viewer; Bea owns Bolt.
\set ann 00000000-0000-4000-8000-00000000000a
\set abe 00000000-0000-4000-8000-0000000000ab
\set max 00000000-0000-4000-8000-0000000000ac
\set vic 00000000-0000-4000-8000-0000000000ad
\set bea 00000000-0000-4000-8000-00000000000b
\set acme 00000000-0000-7000-8000-0000000000a0
\set bolt 00000000-0000-7000-8000-0000000000b0
create function pg_temp.be(person text) returns void language sql as $$
  select set_config('request.jwt.claims', jsonb_build_object('sub', person)::text, true)
$$;
create function pg_temp.who(person uuid) returns text language sql as $$
  select case right(person::text, 2) when '0a' then 'ann' when 'ab' then 'abe' when 'ac' then 'max' when 'ad' then 'vic' when '0b' then 'bea' end
$$;

begin;

-- ids: version 7, variant 10, in order of time
select u::text ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' as version_7,
  abs(('x' || translate(left(u::text, 13), '-', ''))::bit(48)::bigint - extract(epoch from clock_timestamp()) * 1000) < 60000 as now
from helper.uuid_v7() u;
select bool_and(u > before) as ordered
from (select u, lag(u) over (order by n) as before from (select n, helper.uuid_v7() as u from generate_series(1, 1000) n) made) pairs;

select helper.uuid_v7_at('1970-01-01 00:00:01+00') as a_time, helper.uuid_v7_at('-infinity') as before_all, helper.uuid_v7_at('infinity') as after_all;

-- identity
set local role authenticated;
set local request.jwt.claims = '{"sub": "00000000-0000-4000-8000-00000000000A"}';
select helper.current_user_id();
select helper.caller_role();
-- claims without a valid sub are nobody, never an error and never somebody else
set local request.jwt.claims = '{"sub": "ann"}';
select helper.current_user_id();
set local request.jwt.claims = '{"sub": null}';
select helper.current_user_id();
set local request.jwt.claims = '{"sub": {"sub": "00000000-0000-4000-8000-00000000000a"}}';
select helper.current_user_id();
set local request.jwt.claims = '{"sub": "00000000-0000-4000-8000-00000000000a"';
select helper.current_user_id();
set local request.jwt.claims = '{"sub": "\u0000"}';
select helper.current_user_id();
set local request.jwt.claims = '["00000000-0000-4000-8000-00000000000a"]';
select helper.current_user_id(), helper.my_workspaces();
-- an API role without claims is nobody; the older setting counts only without claims
set local request.jwt.claims = '{"role": "authenticated"}';
select helper.current_user_id();
set local request.jwt.claim.sub = '00000000-0000-4000-8000-00000000000b';
select helper.current_user_id();
set local request.jwt.claims = '';
select helper.current_user_id();
set local request.jwt.claim.sub = '';
select helper.current_user_id();
set local role anon;
select helper.current_user_id(), helper.my_workspaces(), helper.is_member(:'acme'), helper.my_role(:'acme');
-- another role is somebody of its own: the same each time, and not a person's id
set local role helper_test_clerk;
select helper.current_user_id();
set local request.jwt.claims = '{"role": "helper_test_clerk"}';
select helper.current_user_id();
-- which roles are shared is an administrator's to say
set local helper_ai.api_roles = 'anon,authenticated , helper_test_clerk';
reset role;
set local helper_ai.api_roles = 'anon,authenticated , helper_test_clerk';
set local role helper_test_clerk;
select helper.current_user_id();
reset role;
reset helper_ai.api_roles;
set local role helper_test_clerk;
set local request.jwt.claims = '';
-- a security definer function in between does not change who asks
reset role;
create function pg_temp.asked() returns name language sql security definer as 'select helper.caller_role()';
set local role authenticated;
select pg_temp.asked();

rollback;

begin;

-- creating workspaces
set local role authenticated;
select helper.create_workspace('Acme');
select pg_temp.be(:'ann');
select helper.create_workspace('  ');
select helper.create_workspace(null);
select helper.create_workspace(repeat('x', 201));
select helper.create_workspace('Acme', 'Not Valid');
select helper.create_workspace('Häuser & Höfe, Inc.') is not null as created;
select helper.create_workspace('Häuser & Höfe, Inc.') is not null as created;
select helper.create_workspace('日本') is not null as created;
select helper.create_workspace('Other', 'my-slug') is not null as created;
select helper.create_workspace('Another', 'my-slug');
select w.name, w.slug, w.created_by = :'ann' as by_ann, m.role
from helper.workspaces w
join helper.workspace_members m on m.workspace_id = w.id
order by w.slug;
insert into helper.workspaces (name, slug) values ('No owner', 'no-owner');

rollback;

begin;

insert into helper.workspaces (id, name, slug) values (:'acme', 'Acme', 'helper-test-acme'), (:'bolt', 'Bolt', 'helper-test-bolt');
insert into helper.workspace_members (workspace_id, user_id, role)
values (:'acme', :'ann', 'owner'), (:'acme', :'abe', 'admin'), (:'acme', :'max', 'member'), (:'acme', :'vic', 'viewer'), (:'bolt', :'bea', 'owner');
insert into helper.profiles (id, full_name)
values (:'ann', 'Ann'), (:'abe', 'Abe'), (:'max', 'Max'), (:'vic', 'Vic'), (:'bea', 'Bea');

-- roles are in order, and an unknown one is an error
set local role authenticated;
select pg_temp.be(:'max');
select helper.my_role(:'acme'), helper.my_role(:'bolt'), helper.my_workspaces(), helper.my_workspaces('member') = helper.my_workspaces() as as_member, helper.my_workspaces('admin') as as_admin;
select helper.is_member(:'acme'), helper.is_member(:'acme', 'member'), helper.is_member(:'acme', 'admin'), helper.is_member(:'bolt');
select helper.my_workspaces('boss');
select helper.is_member(:'acme', 'boss');
select helper._memberships(:'bea');

-- members see their workspace, who is in it, and their profiles
select name from helper.workspaces order by name;
select pg_temp.who(user_id), role from helper.workspace_members order by 1;
select full_name from helper.profiles order by 1;
select count(*) from helper.membership_source;
-- nobody else does
select pg_temp.be(:'bea');
select name from helper.workspaces order by name;
select pg_temp.who(user_id), role from helper.workspace_members order by 1;
select full_name from helper.profiles order by 1;
set local role anon;
select count(*) from helper.workspaces;
set local role authenticated;

-- profiles: one's own
select pg_temp.be(:'max');
update helper.profiles set full_name = 'Maxi' where true returning full_name;
update helper.profiles set id = :'bea' where id = :'max';
insert into helper.profiles (id, full_name) values ('00000000-0000-4000-8000-0000000000ff', 'Nobody');
delete from helper.profiles;

-- the current workspace: argument, setting, claim, the only one
select helper.current_workspace() = :'acme' as only_one;
select helper.current_workspace(:'acme') = :'acme' as argument;
select helper.current_workspace(:'bolt');
select helper.current_workspace('00000000-0000-7000-8000-0000000000c0');
set local helper_ai.workspace = '00000000-0000-7000-8000-0000000000b0';
select helper.current_workspace();
select helper.current_workspace(:'acme') = :'acme' as argument;
set local helper_ai.workspace = 'acme';
select helper.current_workspace();
set local helper_ai.workspace = '';
select set_config('request.jwt.claims', jsonb_build_object('sub', :'max', 'app_metadata', jsonb_build_object('workspace_id', :'bolt'))::text, true);
select helper.current_workspace();
select set_config('request.jwt.claims', jsonb_build_object('sub', :'max', 'workspace_id', 7)::text, true);
select helper.current_workspace();
reset role;
insert into helper.workspace_members (workspace_id, user_id, role) values (:'bolt', :'max', 'viewer');
set local role authenticated;
select pg_temp.be(:'max');
select helper.current_workspace();
select set_config('request.jwt.claims', jsonb_build_object('sub', :'max', 'workspace_id', :'bolt')::text, true);
select helper.current_workspace() = :'bolt' as claim;
select pg_temp.be('00000000-0000-4000-8000-0000000000ff');
select helper.current_workspace();
set local request.jwt.claims = '';
select helper.current_workspace();
reset role;
delete from helper.workspace_members where workspace_id = :'bolt' and user_id = :'max';
set local role authenticated;

-- members manage nobody, by function or by table
select pg_temp.be(:'max');
select helper.add_member(:'acme', :'bea');
select helper.add_member(:'bolt', :'max');
select helper.remove_member(:'acme', :'vic');
insert into helper.workspace_members (workspace_id, user_id, role) values (:'acme', :'bea', 'viewer');
insert into helper.workspace_members (workspace_id, user_id, role) values (:'bolt', :'max', 'owner');
update helper.workspace_members set role = 'owner' where user_id = :'max' returning role;
update helper.workspaces set name = 'Max''s' returning name;
delete from helper.workspaces returning name;
select helper.delete_workspace(:'acme');

-- admins manage all but owners
select pg_temp.be(:'abe');
select helper.add_member(:'acme', :'bea', 'boss');
select helper.add_member(:'acme', null);
select helper.add_member(:'acme', :'bea');
select helper.add_member(:'acme', :'bea', 'viewer');
select helper.add_member(:'acme', :'bea', 'owner');
select helper.add_member(:'acme', :'ann', 'viewer');
select helper.add_member(:'acme', :'abe', 'owner');
select helper.remove_member(:'acme', :'ann');
select helper.remove_member(:'acme', :'bea');
select helper.remove_member(:'acme', :'bea');
insert into helper.workspace_members (workspace_id, user_id, role) values (:'acme', :'bea', 'owner');
insert into helper.workspace_members (workspace_id, user_id, role) values (:'acme', :'bea', 'member') returning role;
update helper.workspace_members set role = 'owner' where user_id = :'bea';
update helper.workspace_members set role = 'viewer' where user_id = :'ann' returning role;
update helper.workspace_members set role = 'viewer' where user_id = :'bea' returning role;
update helper.workspace_members set workspace_id = :'bolt' where user_id = :'bea';
delete from helper.workspace_members where user_id in (:'ann', :'bea') returning pg_temp.who(user_id);
update helper.workspaces set name = 'Acme Ltd', settings = '{"colour": "red"}' returning name;
update helper.workspaces set created_by = :'abe';
delete from helper.workspaces returning name;
select helper.delete_workspace(:'acme');

-- the last owner stays
select pg_temp.be(:'ann');
select helper.remove_member(:'acme', :'ann');
select helper.add_member(:'acme', :'ann', 'member');
update helper.workspace_members set role = 'member' where user_id = :'ann';
delete from helper.workspace_members;
select helper.add_member(:'acme', :'abe', 'owner');
select helper.remove_member(:'acme', :'ann');
select helper.my_role(:'acme');
-- anyone may leave
select pg_temp.be(:'vic');
select helper.remove_member(:'acme', :'vic');
select pg_temp.be(:'max');
delete from helper.workspace_members where user_id = :'max' returning pg_temp.who(user_id);
select helper.my_workspaces();
-- not even the table's owner moves a membership
reset role;
update helper.workspace_members set user_id = :'ann' where user_id = :'abe';
-- an owner deletes a workspace, and what belongs to it goes
insert into helper.conversations (workspace_id, user_id) values (:'acme', :'abe'), (:'bolt', :'bea');
set local role authenticated;
select pg_temp.be(:'abe');
select helper.delete_workspace(:'bolt');
select helper.delete_workspace(:'acme');
select helper.my_workspaces();
reset role;
select name from helper.workspaces where id in (:'acme', :'bolt');
select workspace_id = :'bolt' as of_bolt from helper.conversations where workspace_id in (:'acme', :'bolt');

rollback;

begin;

-- an application's own membership table
create schema helper_test;
create type helper_test.app_role as enum ('owner', 'supervisor', 'agent', 'guest', 'banned');
create table helper_test.team (team_id uuid, person uuid, role helper_test.app_role, note text);
insert into helper_test.team
values (:'acme', :'ann', 'owner'), (:'acme', :'abe', 'supervisor'), (:'acme', :'max', 'agent'), (:'acme', :'max', 'banned'), (:'acme', :'vic', 'guest'), (:'bolt', :'bea', 'banned');
create temporary table helper_test_team (workspace_id uuid, user_id uuid);
create view helper_test.team_view as select * from helper_test.team;
insert into helper.workspaces (id, name, slug) values (:'bolt', 'Bolt', 'helper-test-bolt');
insert into helper.workspace_members (workspace_id, user_id, role) values (:'bolt', :'bea', 'owner');
set local role authenticated;
select helper.use_membership('helper_test.team');
reset role;
select helper.use_membership('helper_test.team');
select helper.use_membership('helper_test.team', 'team_id', 'note');
select helper.use_membership('helper_test.team', 'team_id', 'person', 'person');
select helper.use_membership('helper_test.team_view', 'team_id', 'person');
select helper.use_membership('helper_test_team');
select helper.use_membership('helper_test.team', 'team_id', 'person', 'role', '{"agent": "boss"}');
select helper.use_membership('helper_test.team', 'team_id', 'person', 'role', '[]');
select helper.use_membership('helper_test.team', 'team_id', 'person', null, '{"agent": "member"}');
select helper.use_membership('helper_test.team', 'team_id', 'person', 'role', '{"supervisor": "admin", "agent": "member", "banned": null}');
set local role authenticated;
select pg_temp.be(:'ann');
select helper.my_role(:'acme'), helper.my_workspaces('owner') = array[:'acme'::uuid] as owns;
select pg_temp.be(:'abe');
select helper.my_role(:'acme'), helper.is_member(:'acme', 'admin'), helper.is_member(:'acme', 'owner');
select helper.current_workspace() = :'acme' as only_one;
select pg_temp.be(:'max');
select helper.my_role(:'acme'), cardinality(helper.my_workspaces());
-- a role without a mapping has no access, nor has one mapped to null; our own table is not read
select pg_temp.be(:'vic');
select helper.my_role(:'acme'), helper.my_workspaces();
select pg_temp.be(:'bea');
select helper.my_role(:'bolt'), helper.my_workspaces();
select name from helper.workspaces;
-- nor written
select helper.create_workspace('New');
select helper.add_member(:'acme', :'bea');
select helper.remove_member(:'acme', :'bea');
-- without a role column everyone is a member
reset role;
select helper.use_membership('helper_test.team', 'team_id', 'person');
set local role authenticated;
select pg_temp.be(:'vic');
select helper.my_role(:'acme');
select pg_temp.who(c) from unnest(helper.my_colleagues()) c order by 1;
-- our data of a workspace can be deleted without the application's
reset role;
insert into helper.conversations (workspace_id, user_id) values (:'acme', :'vic');
select helper.use_membership('helper_test.team', 'team_id', 'person', 'role');
set local role authenticated;
select pg_temp.be(:'ann');
select helper.delete_workspace(:'acme');
reset role;
select count(*) from helper.conversations where workspace_id = :'acme';
-- a table that changed beneath is an error, not an open door
drop view helper_test.team_view;
alter table helper_test.team alter column person type text;
set local role authenticated;
select helper.my_workspaces();
reset role;
drop table helper_test.team;
-- its number would differ each time
update helper.membership_source set relation = 1;
set local role authenticated;
select helper.my_workspaces();
reset role;
-- back to ours
select helper.use_membership(null);
set local role authenticated;
select pg_temp.be(:'bea');
select helper.my_role(:'bolt');

rollback;

-- a policy's predicate is computed once for a statement
begin;
insert into helper.workspaces (name, slug) select 'Row ' || n, 'helper-test-row-' || n from generate_series(1, 20) n;
set local track_functions = 'all';
set local role authenticated;
select pg_temp.be(:'ann');
select count(*) from helper.workspaces;
select calls from pg_stat_xact_user_functions where funcid = 'helper.my_workspaces(text)'::regprocedure;
rollback;

revoke all on schema helper from helper_test_clerk;
drop owned by helper_test_clerk;
drop role helper_test_clerk;
