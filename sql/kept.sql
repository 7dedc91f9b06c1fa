-- What sessions keep of tables that hardly ever change; see src/pg/kept.rs.

create function helper._forget_kept() returns trigger
language c as 'MODULE_PATHNAME', 'forget_kept_wrapper';
comment on function helper._forget_kept() is 'Tells every session, when the transaction commits, to forget what it keeps of providers, models, their defaults and token ratios, budgets, modes and the source of membership';

create trigger providers_forget after insert or update or delete or truncate on helper.providers
  for each statement execute function helper._forget_kept();
create trigger provider_secrets_forget after insert or update or delete or truncate on helper.provider_secrets
  for each statement execute function helper._forget_kept();
create trigger models_forget after insert or update or delete or truncate on helper.models
  for each statement execute function helper._forget_kept();
create trigger model_catalog_forget after insert or update or delete or truncate on helper.model_catalog
  for each statement execute function helper._forget_kept();
create trigger model_defaults_forget after insert or update or delete or truncate on helper.model_defaults
  for each statement execute function helper._forget_kept();
create trigger budgets_forget after insert or update or delete or truncate on helper.budgets
  for each statement execute function helper._forget_kept();
create trigger modes_forget after insert or update or delete or truncate on helper.modes
  for each statement execute function helper._forget_kept();
create trigger membership_source_forget after insert or update or delete or truncate on helper.membership_source
  for each statement execute function helper._forget_kept();
-- Learned with every call: what changes little is soon forgotten anyway.
create trigger token_ratios_forget after insert on helper.token_ratios
  for each row execute function helper._forget_kept();
create trigger token_ratios_forget_change after update of ratio on helper.token_ratios
  for each row when (new.ratio > old.ratio * 1.05 or new.ratio < old.ratio * 0.95) execute function helper._forget_kept();
