-- The pack marketplace: products, and which to offer to whom.

create table helper.products (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  name text not null constraint products_name_check check (name ~ '[^[:space:]]' and char_length(name) <= 300),
  description text not null constraint products_description_check check (char_length(description) <= 20000),
  price numeric(18, 2) not null constraint products_price_check check (price >= 0),
  category text constraint products_category_check check (char_length(category) <= 100),
  images text[] not null default '{}' constraint products_images_check check (cardinality(images) <= 50 and array_position(images, null) is null),
  stock integer constraint products_stock_check check (stock >= 0),
  active boolean not null default true,
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id)
);
comment on table helper.products is 'Products of a workspace';
comment on column helper.products.workspace_id is 'The workspace';
comment on column helper.products.id is 'Identifier, in order of creation';
comment on column helper.products.name is 'Name';
comment on column helper.products.description is 'Description';
comment on column helper.products.price is 'Price';
comment on column helper.products.category is 'Category';
comment on column helper.products.images is 'Addresses of pictures';
comment on column helper.products.stock is 'How many there are; null: not counted';
comment on column helper.products.active is 'Whether it is offered';
comment on column helper.products.created_by is 'Who added it';
comment on column helper.products.created_at is 'When it was added';
comment on column helper.products.updated_at is 'When it last changed';
select helper._share_table('helper.products', 'member', 'admin');
create trigger products_touch before update on helper.products
  for each row execute function helper._touch();

create table helper.recommendations (
  workspace_id uuid not null,
  id uuid not null default helper.uuid_v7(),
  product_id uuid not null,
  contact_id uuid not null,
  reason text constraint recommendations_reason_check check (char_length(reason) <= 2000),
  created_by uuid not null default helper.current_user_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (workspace_id, id),
  constraint recommendations_product_fkey foreign key (workspace_id, product_id) references helper.products (workspace_id, id) on delete cascade,
  constraint recommendations_contact_fkey foreign key (workspace_id, contact_id) references helper.contacts (workspace_id, id) on delete cascade
);
create index recommendations_product_id_idx on helper.recommendations (product_id, workspace_id);
create index recommendations_contact_id_idx on helper.recommendations (contact_id, workspace_id);
comment on table helper.recommendations is 'Products that suit contacts';
comment on column helper.recommendations.workspace_id is 'The workspace';
comment on column helper.recommendations.id is 'Identifier';
comment on column helper.recommendations.product_id is 'The product';
comment on column helper.recommendations.contact_id is 'The contact';
comment on column helper.recommendations.reason is 'Why';
comment on column helper.recommendations.created_by is 'Who said so';
comment on column helper.recommendations.created_at is 'When';
select helper._share_table('helper.recommendations', 'member', null);

create function helper.search_products(
  query text,
  category text default null,
  min_price numeric default null,
  max_price numeric default null,
  "limit" integer default 20,
  workspace uuid default null
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
  v_words text[] := array(
    select '%' || regexp_replace(w, '([\\%_])', '\\\1', 'g') || '%'
    from regexp_split_to_table(coalesce(query, ''), '\s+') w
    where w <> '');
begin
  return (
    select jsonb_build_object('products', coalesce(jsonb_agg(to_jsonb(f) - 'workspace_id' order by f.name, f.id), '[]'))
    from (
      select p.*
      from helper.products p
      where p.workspace_id = v_workspace
        and p.active
        and concat_ws(' ', p.name, p.description, p.category) ilike all (v_words)
        and (search_products.category is null or lower(p.category) = lower(search_products.category))
        and (min_price is null or p.price >= min_price)
        and (max_price is null or p.price <= max_price)
      order by p.name, p.id
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) f);
end
$$;
comment on function helper.search_products(text, text, numeric, numeric, integer, uuid) is
  'Finds products that have all the words in name, description or category.
@param query words; empty finds all
@param category only in this category
@param min_price only at this price or above
@param max_price only at this price or below
@param limit how many at most, up to 100
Errors: 42501, 42704';

create function helper.create_product(
  name text,
  description text,
  price numeric,
  category text default null,
  images text[] default '{}',
  stock integer default null,
  workspace uuid default null
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_product jsonb;
begin
  insert into helper.products as p (workspace_id, name, description, price, category, images, stock)
  values (v_workspace, create_product.name, create_product.description, create_product.price, create_product.category,
    coalesce(create_product.images, '{}'), create_product.stock)
  returning to_jsonb(p) - 'workspace_id' into v_product;
  return v_product;
end
$$;
comment on function helper.create_product(text, text, numeric, text, text[], integer, uuid) is
  'Adds a product.
@param name name
@param description description
@param price price
@param category category
@param images addresses of pictures
@param stock how many there are, if they are counted
Errors: 23502, 23514, 42501, 42704';

create function helper.update_product(product_id uuid, updates jsonb, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_allowed constant text[] := array['name', 'description', 'price', 'category', 'images', 'active'];
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_unknown text;
  v_product jsonb;
begin
  if jsonb_typeof(updates) is distinct from 'object' or updates = '{}' then
    raise exception using errcode = '22023', message = 'updates is not an object with something to change';
  end if;
  select k into v_unknown from jsonb_object_keys(updates) k where k <> all (v_allowed) order by k limit 1;
  if found then
    raise exception using
      errcode = '22023',
      message = format('"%s" of a product cannot be changed here', v_unknown),
      hint = format('What can be changed is %s; stock is changed by set_stock.', array_to_string(v_allowed, ', '));
  end if;
  update helper.products p
  set name = case when updates ? 'name' then updates ->> 'name' else p.name end,
    description = case when updates ? 'description' then updates ->> 'description' else p.description end,
    price = case when updates ? 'price' then (updates ->> 'price')::numeric else p.price end,
    category = case when updates ? 'category' then updates ->> 'category' else p.category end,
    images = case when updates ? 'images' then array(select jsonb_array_elements_text(updates -> 'images')) else p.images end,
    active = case when updates ? 'active' then (updates ->> 'active')::boolean else p.active end
  where p.workspace_id = v_workspace and p.id = product_id
  returning to_jsonb(p) - 'workspace_id' into v_product;
  if not found then
    raise exception using errcode = '42704', message = format('product "%s" does not exist', product_id);
  end if;
  return v_product;
end
$$;
comment on function helper.update_product(uuid, jsonb, uuid) is
  'Changes a product.
@param product_id the product
@param updates what changes: name, description, price, category, images (an array), active (true or false)
Errors: 22023, 22P02, 23502, 23514, 42501, 42704';

create function helper.set_stock(product_id uuid, stock integer, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_before integer;
begin
  select p.stock into v_before from helper.products p where p.workspace_id = v_workspace and p.id = product_id for update;
  if not found then
    raise exception using errcode = '42704', message = format('product "%s" does not exist', product_id);
  end if;
  update helper.products p set stock = set_stock.stock where p.workspace_id = v_workspace and p.id = product_id;
  return jsonb_build_object('product_id', product_id, 'before', v_before, 'stock', set_stock.stock);
end
$$;
comment on function helper.set_stock(uuid, integer, uuid) is
  'Says how many of a product there are.
@param product_id the product
@param stock how many; null: they are not counted
Errors: 23514, 42501, 42704';

create function helper.create_recommendation(product_id uuid, contact_id uuid, reason text default null, workspace uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('member', workspace);
  v_recommendation jsonb;
begin
  insert into helper.recommendations as r (workspace_id, product_id, contact_id, reason)
  values (v_workspace, create_recommendation.product_id, create_recommendation.contact_id, create_recommendation.reason)
  returning to_jsonb(r) - 'workspace_id' into v_recommendation;
  return v_recommendation;
end
$$;
comment on function helper.create_recommendation(uuid, uuid, text, uuid) is
  'Notes that a product suits a contact.
@param product_id the product
@param contact_id the contact
@param reason why
Errors: 23503 no such product or contact, 23514, 42501, 42704';

create function helper.list_recommendations(contact_id uuid default null, product_id uuid default null, "limit" integer default 20, workspace uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace uuid := helper.workspace_for('viewer', workspace);
begin
  return (
    select jsonb_build_object('recommendations', coalesce(jsonb_agg(to_jsonb(f) - 'workspace_id' order by f.id desc), '[]'))
    from (
      select r.*, p.name as product, p.price, c.name as contact
      from helper.recommendations r
      join helper.products p on p.workspace_id = r.workspace_id and p.id = r.product_id
      join helper.contacts c on c.workspace_id = r.workspace_id and c.id = r.contact_id
      where r.workspace_id = v_workspace
        and (list_recommendations.contact_id is null or r.contact_id = list_recommendations.contact_id)
        and (list_recommendations.product_id is null or r.product_id = list_recommendations.product_id)
      order by r.id desc
      limit least(greatest(coalesce("limit", 20), 1), 100)
    ) f);
end
$$;
comment on function helper.list_recommendations(uuid, uuid, integer, uuid) is
  'Which products suit which contacts, the latest first.
@param contact_id only for this contact
@param product_id only this product
@param limit how many at most, up to 100
Errors: 42501, 42704';
