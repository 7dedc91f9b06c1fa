-- Made here and not by create extension, so that the schema goes with the extension, and nobody's own schema of that name
-- is taken for ours.
create schema helper;
comment on schema helper is 'helper_ai: answers with citations from a workspace''s own documents';
