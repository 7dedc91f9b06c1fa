-- Rules that every object of the extension keeps; each query lists the exceptions, and there are none.
create temporary view member as
select d.classid, d.objid
from pg_depend d
where d.refclassid = 'pg_extension'::regclass
  and d.deptype = 'e'
  and d.refobjid = (
    select e.refobjid
    from pg_depend e
    where e.classid = 'pg_class'::regclass and e.objid = 'helper.workspaces'::regclass and e.deptype = 'e');

-- everything has a comment
select pg_describe_object(m.classid, m.objid, 0) as lacks_comment
from member m
where m.classid in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass)
  and not exists (select from pg_class c where m.classid = 'pg_class'::regclass and c.oid = m.objid and c.relkind not in ('r', 'p', 'v', 'm'))
  and not exists (select from pg_type t where m.classid = 'pg_type'::regclass and t.oid = m.objid and (t.typrelid <> 0 and t.typtype = 'c' and exists (select from pg_class c where c.oid = t.typrelid and c.relkind <> 'c') or t.typelem <> 0))
  and obj_description(m.objid, m.classid::regclass::name) is null
union all
select pg_describe_object('pg_class'::regclass, a.attrelid, a.attnum)
from member m
join pg_class c on c.oid = m.objid and c.relkind in ('r', 'p', 'v', 'm')
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where m.classid = 'pg_class'::regclass
  and col_description(a.attrelid, a.attnum) is null
union all
select pg_describe_object('pg_policy'::regclass, p.oid, 0)
from member m
join pg_policy p on p.polrelid = m.objid
where m.classid = 'pg_class'::regclass
  and obj_description(p.oid, 'pg_policy') is null
order by 1;

-- every table has row-level security
select c.oid::regclass as lacks_row_level_security
from member m
join pg_class c on c.oid = m.objid
where m.classid = 'pg_class'::regclass and c.relkind in ('r', 'p') and not c.relrowsecurity
order by 1;

-- policies are for one command and are named <table>_<command>_<who>
select p.tablename, p.policyname as misnamed_policy
from pg_policies p
where p.schemaname = 'helper'
  and (p.cmd = 'ALL' or left(p.policyname, length(p.tablename || p.cmd) + 2) <> p.tablename || '_' || lower(p.cmd) || '_')
order by 1, 2;

-- every function fixes its search_path, unless it is in C
select p.oid::regprocedure as lacks_search_path
from member m
join pg_proc p on p.oid = m.objid
join pg_language l on l.oid = p.prolang
where m.classid = 'pg_proc'::regclass
  and l.lanname <> 'c'
  -- the names in a parsed body were looked up when it was made
  and p.prosqlbody is null
  and not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)
order by 1;

-- nothing is for everyone, and nothing that begins with an underscore is for anyone
select p.oid::regprocedure as callable, a.grantee::regrole as by_whom
from member m
join pg_proc p on p.oid = m.objid
cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
where m.classid = 'pg_proc'::regclass
  and (a.grantee = 0 or left(p.proname, 1) = '_' and a.grantee <> p.proowner)
order by 1, 2;
select c.oid::regclass as reachable, a.privilege_type
from member m
join pg_class c on c.oid = m.objid
cross join lateral aclexplode(c.relacl) a
where m.classid = 'pg_class'::regclass and a.grantee = 0
order by 1, 2;

-- names are not overloaded
select p.proname as overloaded
from member m
join pg_proc p on p.oid = m.objid
where m.classid = 'pg_proc'::regclass
group by p.proname
having count(*) > 1
order by 1;
