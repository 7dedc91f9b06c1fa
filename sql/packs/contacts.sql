-- Contacts of the pack meta_hub.

create function helper.contact_phone(phone_number text, workspace uuid default null) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.current_workspace(workspace);
  v_region text;
  v_phone text;
begin
  select n.region into v_region
  from helper.wa_numbers n
  where n.workspace_id = v_workspace
  order by n.id
  limit 1;
  v_phone := helper.normalize_phone(phone_number, v_region);
  if v_phone is null then
    raise exception using
      errcode = '22023',
      message = format('"%s" is not a phone number', phone_number),
      hint = 'Write it with its country''s code, such as +62 812 3456 7890.';
  end if;
  return v_phone;
end
$$;
comment on function helper.contact_phone(text, uuid) is
  'A phone number in E.164, a national one read as of the country of the workspace''s WhatsApp number. Errors: 22023, 42501, 42704';

create function helper.contact_for(phone_number text, workspace uuid default null) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_phone text := helper.contact_phone(phone_number, v_workspace);
  v_contact uuid;
begin
  insert into helper.contacts as c (workspace_id, phone)
  values (v_workspace, v_phone)
  on conflict on constraint contacts_phone_key do nothing
  returning c.id into v_contact;
  if not found then
    select c.id into v_contact from helper.contacts c where c.workspace_id = v_workspace and c.phone = v_phone;
  end if;
  return v_contact;
end
$$;
comment on function helper.contact_for(text, uuid) is 'The contact with a phone number, added where there is none. Errors: 22023, 42501, 42704';

create function helper.create_contact(
  phone_number text,
  name text default null,
  email text default null,
  tags text[] default '{}',
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_contact jsonb;
begin
  insert into helper.contacts as c (workspace_id, phone, name, email, tags)
  values (v_workspace, helper.contact_phone(phone_number, v_workspace), create_contact.name, create_contact.email,
    helper.with_tags(create_contact.tags, '{}'))
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  return v_contact;
end
$$;
comment on function helper.create_contact(text, text, text, text[], uuid) is
  'Adds a contact.
@param phone_number phone number, with the country''s code
@param name name
@param email address
@param tags tags
Errors: 22023, 23505 there is one with this number, 23514, 42501, 42704';

create function helper.update_contact(
  contact_id uuid,
  name text default null,
  email text default null,
  tags text[] default null,
  accepts_broadcasts boolean default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_contact jsonb;
begin
  update helper.contacts c
  set name = coalesce(update_contact.name, c.name),
    email = coalesce(update_contact.email, c.email),
    tags = case when update_contact.tags is null then c.tags else helper.with_tags(update_contact.tags, '{}') end,
    accepts_broadcasts = coalesce(update_contact.accepts_broadcasts, c.accepts_broadcasts)
  where c.workspace_id = v_workspace and c.id = contact_id
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  if not found then
    raise exception using errcode = '42704', message = format('contact "%s" does not exist', contact_id);
  end if;
  return v_contact;
end
$$;
comment on function helper.update_contact(uuid, text, text, text[], boolean, uuid) is
  'Changes a contact; what is not given stays.
@param contact_id the contact
@param name name
@param email address
@param tags tags, instead of those it has
@param accepts_broadcasts whether broadcasts may be sent to it
Errors: 23514, 42501, 42704';

create function helper.tag_contact(contact_id uuid, add_tags text[] default '{}', remove_tags text[] default '{}', workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_contact jsonb;
begin
  update helper.contacts c
  set tags = helper.with_tags(c.tags, add_tags, coalesce(remove_tags, '{}'))
  where c.workspace_id = v_workspace and c.id = contact_id
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  if not found then
    raise exception using errcode = '42704', message = format('contact "%s" does not exist', contact_id);
  end if;
  return v_contact;
end
$$;
comment on function helper.tag_contact(uuid, text[], text[], uuid) is
  'Adds tags to a contact, and removes some.
@param contact_id the contact
@param add_tags tags to add
@param remove_tags tags to remove
Errors: 23514, 42501, 42704';

create function helper.search_contacts(query text, tags text[] default null, "limit" integer default 20, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_like text := '%' || regexp_replace(coalesce(query, ''), '([\\%_])', '\\\1', 'g') || '%';
  -- A number is found however it is written.
  v_digits text := regexp_replace(coalesce(query, ''), '[^0-9]', '', 'g');
begin
  return (
    select jsonb_build_object('contacts', coalesce(jsonb_agg(to_jsonb(f) - 'workspace_id' order by f.name, f.id), '[]'))
    from (
      select c.*
      from helper.contacts c
      where c.workspace_id = v_workspace
        and (c.name ilike v_like or c.email ilike v_like
          or v_digits <> '' and query ~ '^[-+0-9 ().]+$' and c.phone like '%' || ltrim(v_digits, '0') || '%'
          or coalesce(query, '') = '')
        and (search_contacts.tags is null or c.tags && search_contacts.tags)
      order by c.name, c.id
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) f);
end
$$;
comment on function helper.search_contacts(text, text[], integer, uuid) is
  'Finds contacts by a part of the name, address or phone number.
@param query a part of it; empty finds all
@param tags only contacts with any of these tags
@param limit how many at most, up to 100
Errors: 42501, 42704';

create function helper.merge_contacts(primary_contact_id uuid, duplicate_contact_ids uuid[], workspace uuid default null) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_duplicates uuid[] := array(select distinct d from unnest(duplicate_contact_ids) d where d is not null order by 1);
  v_missing uuid;
  v_table regclass;
  v_contact jsonb;
begin
  if cardinality(v_duplicates) = 0 or primary_contact_id = any (v_duplicates) then
    raise exception using errcode = '22023', message = 'duplicate_contact_ids is empty or names the primary contact';
  end if;
  -- Held in one order, so that two that merge do not wait for each other.
  perform from helper.contacts c
  where c.workspace_id = v_workspace and c.id = any (v_duplicates || primary_contact_id)
  order by c.id
  for update;
  select d into v_missing
  from unnest(v_duplicates || primary_contact_id) d
  where not exists (select from helper.contacts c where c.workspace_id = v_workspace and c.id = d)
  limit 1;
  if found then
    raise exception using errcode = '42704', message = format('contact "%s" does not exist', v_missing);
  end if;
  foreach v_table in array array['helper.wa_threads', 'helper.wa_outbox', 'helper.leads', 'helper.recommendations']::regclass[] loop
    execute format('update %s set contact_id = $1 where workspace_id = $2 and contact_id = any ($3)', v_table)
      using primary_contact_id, v_workspace, v_duplicates;
  end loop;
  update helper.contacts c
  set name = coalesce(c.name, d.name),
    email = coalesce(c.email, d.email),
    tags = helper.with_tags(c.tags, d.tags),
    accepts_broadcasts = c.accepts_broadcasts and d.accepts_broadcasts
  from (
    select (array_agg(o.name order by o.id) filter (where o.name is not null))[1] as name,
      (array_agg(o.email order by o.id) filter (where o.email is not null))[1] as email,
      array(select distinct t from helper.contacts x cross join unnest(x.tags) t
        where x.workspace_id = v_workspace and x.id = any (v_duplicates)) as tags,
      bool_and(o.accepts_broadcasts) as accepts_broadcasts
    from helper.contacts o
    where o.workspace_id = v_workspace and o.id = any (v_duplicates)
  ) d
  where c.workspace_id = v_workspace and c.id = primary_contact_id
  returning to_jsonb(c) - 'workspace_id' into v_contact;
  delete from helper.contacts c where c.workspace_id = v_workspace and c.id = any (v_duplicates);
  return v_contact || jsonb_build_object('merged', cardinality(v_duplicates));
end
$$;
comment on function helper.merge_contacts(uuid, uuid[], uuid) is
  'Makes one contact of several: conversations and leads move to the primary one, what it lacks is filled in, and the others are deleted. For admins.
@param primary_contact_id the contact that stays
@param duplicate_contact_ids the contacts that become part of it
Errors: 22023, 42501, 42704';

-- Fields and what ends them, matched in one pass; what the pattern left out is a quote in the wrong place.
create function helper.parse_csv(csv text) returns setof text[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
  v_text text := replace(replace(ltrim(csv, U&'\FEFF'), E'\r\n', E'\n'), E'\r', E'\n');
  v_row text[] := '{}';
  v_field text;
  v_match text[];
  v_length bigint := 0;
begin
  if right(v_text, 1) <> E'\n' then
    v_text := v_text || E'\n';
  end if;
  for v_match in select m from regexp_matches(v_text, E'("(?:[^"]|"")*"|[^",\n]*)([,\n])', 'g') m loop
    v_length := v_length + char_length(v_match[1]) + 1;
    v_field := v_match[1];
    if left(v_field, 1) = '"' then
      v_field := replace(substring(v_field from 2 for char_length(v_field) - 2), '""', '"');
    end if;
    v_row := v_row || v_field;
    if v_match[2] = E'\n' then
      if v_row <> array[''] then
        return next v_row;
      end if;
      v_row := '{}';
    end if;
  end loop;
  if v_length <> char_length(v_text) then
    raise exception using errcode = '22023', message = 'csv has a quote in the wrong place';
  end if;
end
$$;
comment on function helper.parse_csv(text) is 'Rows of comma-separated values as RFC 4180 has them, empty lines left out. Errors: 22023';

create function helper.file_text(document_id uuid, workspace uuid default null) returns text
language c stable parallel unsafe as 'MODULE_PATHNAME', 'file_text_wrapper';
comment on function helper.file_text(uuid, uuid) is
  'The text of a document as it was given: of a file its bytes, which are UTF-8. For who may see the document. Errors: 22023 not a text, 42501, 42704';

create function helper.import_contacts(
  file_url text default null,
  mapping jsonb default '{}',
  skip_duplicates boolean default true,
  csv text default null,
  document_id uuid default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('admin', workspace);
  v_csv text := csv;
  v_region text;
  v_header text[];
  v_columns jsonb;
  v_outcome jsonb;
begin
  if v_csv is null and document_id is not null then
    v_csv := helper.file_text(document_id, v_workspace);
  elsif v_csv is null then
    if file_url is null or file_url !~* '^data:text/csv(;charset=utf-8)?;base64,' then
      raise exception using
        errcode = '22023',
        message = 'file_url is not a data: URL of a CSV file in base64',
        hint = 'The database fetches nothing: pass the file''s content as csv or as data:text/csv;base64,..., or add it with helper.add_file and pass its id as document_id.';
    end if;
    v_csv := convert_from(decode(substring(file_url from position(',' in file_url) + 1), 'base64'), 'UTF8');
  end if;
  if octet_length(v_csv) > 5 * 1024 * 1024 then
    raise exception using errcode = '22023', message = format('csv has %s bytes, at most 5242880 are allowed', octet_length(v_csv));
  end if;
  select r.fields into v_header from helper.parse_csv(v_csv) r (fields) limit 1;
  -- A column has the title that mapping gives it, else one of its usual ones.
  select coalesce(jsonb_object_agg(k.key, h.place), '{}') into v_columns
  from (values
    ('phone', array['phone', 'phone_number', 'phone number', 'telepon', 'nomor telepon']),
    ('name', array['name', 'nama']),
    ('email', array['email', 'e-mail']),
    ('tags', array['tags', 'tag'])) k (key, titles)
  join unnest(v_header) with ordinality h (title, place)
    on lower(btrim(h.title)) = any (case when mapping ? k.key then array[lower(btrim(mapping ->> k.key))] else k.titles end);
  if not v_columns ? 'phone' then
    raise exception using
      errcode = '22023',
      message = 'csv has no column with phone numbers',
      detail = format('Columns are %s.', coalesce(nullif(array_to_string(v_header, ', '), ''), 'none')),
      hint = 'Name it in mapping, as {"phone": "its title"}.';
  end if;
  select n.region into v_region from helper.wa_numbers n where n.workspace_id = v_workspace order by n.id limit 1;
  with parsed as materialized (
    select f.place,
      helper.normalize_phone(f.fields[(v_columns ->> 'phone')::integer], v_region) as phone,
      left(nullif(btrim(f.fields[(v_columns ->> 'name')::integer]), ''), 300) as name,
      substring(btrim(f.fields[(v_columns ->> 'email')::integer]) from '^[^@[:space:]]+@[^@[:space:]]+$') as email,
      helper.with_tags(regexp_split_to_array(f.fields[(v_columns ->> 'tags')::integer], '[;,|]'), '{}') as tags
    from helper.parse_csv(v_csv) with ordinality f (fields, place)
    where f.place > 1
  ), valid as materialized (
    select distinct on (p.phone) p.*
    from parsed p
    where p.phone is not null
    order by p.phone, p.place
  ), known as materialized (
    select v.phone from valid v join helper.contacts c on c.workspace_id = v_workspace and c.phone = v.phone
  ), written as (
    insert into helper.contacts as c (workspace_id, phone, name, email, tags)
    select v_workspace, v.phone, v.name, v.email, v.tags
    from valid v
    order by v.phone
    on conflict on constraint contacts_phone_key do update
    set name = coalesce(excluded.name, c.name),
      email = coalesce(excluded.email, c.email),
      tags = helper.with_tags(c.tags, excluded.tags)
    where not import_contacts.skip_duplicates
    returning c.phone
  )
  select jsonb_build_object(
    'rows', (select count(*) from parsed),
    'added', (select count(*) from written w where w.phone not in (select k.phone from known k)),
    'changed', (select count(*) from written w where w.phone in (select k.phone from known k)),
    'without_phone_number', (select count(*) from parsed p where p.phone is null),
    'first_wrong_rows', (select coalesce(jsonb_agg(w.place order by w.place), '[]') from (
      select p.place from parsed p where p.phone is null order by p.place limit 20) w))
  into v_outcome;
  return v_outcome;
end
$$;
comment on function helper.import_contacts(text, jsonb, boolean, text, uuid, uuid) is
  'Adds contacts from comma-separated values. For admins.
@param file_url the file as a data:text/csv;base64, URL
@param mapping titles of the columns, such as {"phone": "Mobile", "name": "Full name"}; else phone, name, email and tags
@param skip_duplicates leaves contacts that are there as they are; false fills them in
@param csv the file''s content, instead of file_url
@param document_id a CSV file among the documents, instead of file_url
Errors: 22021, 22023, 42501, 42704';

-- What a spreadsheet would take for a formula gets an apostrophe before it: names come from strangers.
create function helper.csv_field(value text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select '"' || replace(regexp_replace(coalesce(value, ''), '^([=+@\t\r-])', '''\1'), '"', '""') || '"'
$$;
comment on function helper.csv_field(text) is 'A text as a field of comma-separated values that no spreadsheet takes for a formula';

create function helper.export_contacts(filters jsonb default '{}', format text default 'csv', workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_filters jsonb := coalesce(filters, '{}');
  v_unknown text;
  v_tags text[];
  v_rows text;
  v_count bigint;
begin
  if format is distinct from 'csv' then
    raise exception using errcode = '22023', message = pg_catalog.format('format "%s" is not known', format), hint = 'The format is csv, which spreadsheets open.';
  end if;
  select k into v_unknown from jsonb_object_keys(v_filters) k where k not in ('tags', 'created_after', 'accepts_broadcasts') limit 1;
  if found then
    raise exception using
      errcode = '22023',
      message = pg_catalog.format('filter "%s" does not exist', v_unknown),
      hint = 'Filters are tags, created_after and accepts_broadcasts.';
  end if;
  if v_filters ? 'tags' then
    v_tags := array(select jsonb_array_elements_text(v_filters -> 'tags'));
  end if;
  -- A phone number is of digits only and keeps its plus.
  select string_agg(pg_catalog.format('"%s",%s,%s,%s,"%s"', c.phone, helper.csv_field(c.name), helper.csv_field(c.email),
      helper.csv_field(array_to_string(c.tags, ';')), to_char(c.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), E'\r\n' order by c.id),
    count(*)
  into v_rows, v_count
  from helper.contacts c
  where c.workspace_id = v_workspace
    and (v_tags is null or c.tags && v_tags)
    and (not v_filters ? 'created_after' or c.created_at >= (v_filters ->> 'created_after')::timestamptz)
    and (not v_filters ? 'accepts_broadcasts' or c.accepts_broadcasts = (v_filters ->> 'accepts_broadcasts')::boolean);
  return jsonb_build_object('count', v_count, 'format', 'csv', 'content',
    '"phone","name","email","tags","created_at"' || coalesce(E'\r\n' || v_rows, '') || E'\r\n');
end
$$;
comment on function helper.export_contacts(jsonb, text, uuid) is
  'Contacts as comma-separated values.
@param filters tags (an array, any of them), created_after (a time), accepts_broadcasts (true or false)
@param format csv
Errors: 22007, 22023, 42501, 42704';
