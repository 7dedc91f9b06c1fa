-- Workflows to look at. The views read as the extension's owner and say themselves whose rows they show, so that viewers
-- see that something ran and how it ended, and not with what.

create view helper.workflow_activity with (security_barrier) as
  select r.workspace_id, r.id, r.workflow_id, w.name as workflow, r.version, r.status, r.trigger ->> 'kind' as trigger,
    r.error ->> 'sqlstate' as error_code, r.depth, r.replay_of, r.user_id, r.created_at, r.started_at, r.finished_at,
    coalesce(r.finished_at, clock_timestamp()) - r.started_at as duration
  from helper.workflow_runs r
  join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id
  where r.workspace_id = any ((select helper.my_workspaces())::uuid[]);
comment on view helper.workflow_activity is 'Runs of the caller''s workspaces: workflow, status, what kind of thing started them and how long they took';

create view helper.workflow_step_activity with (security_barrier) as
  select s.workspace_id, s.run_id, s.step, nullif(s.item, -1) as item, s.status, s.attempt, s.error ->> 'sqlstate' as error_code,
    s.started_at, s.finished_at, s.finished_at - s.started_at as duration, u.tokens, u.cost
  from helper.workflow_steps s
  left join lateral (
    select sum(coalesce(x.input_tokens, 0) + coalesce(x.output_tokens, 0)) as tokens, sum(x.cost) as cost
    from helper.usage_records x
    where x.workspace_id = s.workspace_id and x.message_id = (s.waits_for ->> 'message')::uuid
  ) u on s.waits_for ? 'message'
  where s.workspace_id = any ((select helper.my_workspaces())::uuid[]);
comment on view helper.workflow_step_activity is 'Steps of those runs: status, attempts, times, and the tokens and cost of model calls';

create view helper.workflow_waiting with (security_barrier) as
  select s.workspace_id, s.run_id, w.name as workflow, s.step, nullif(s.item, -1) as item,
    case
      when s.waits_for ? 'call' then 'call'
      when s.waits_for ? 'message' then 'reply'
      when s.waits_for ? 'run' then 'run'
      when s.waits_for ? 'event' then 'event'
      else 'time'
    end as waits_for,
    coalesce(s.waits_for ->> 'call', s.waits_for ->> 'message', s.waits_for ->> 'run', s.waits_for ->> 'event') as subject,
    s.wake_at, s.started_at as since
  from helper.workflow_steps s
  join helper.workflow_runs r on r.workspace_id = s.workspace_id and r.id = s.run_id
  join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id
  where s.status = 'waiting'
    and s.workspace_id = any ((select helper.my_workspaces())::uuid[]);
comment on view helper.workflow_waiting is 'What steps of runs wait for: a call (to be confirmed, or running), a reply, another run, an event or a time';

create view helper.workflow_failures with (security_barrier) as
  select r.workspace_id, r.id as run_id, w.name as workflow, r.version, r.status, r.error ->> 'step' as step,
    r.error ->> 'sqlstate' as error_code, r.error ->> 'message' as message, r.error ->> 'detail' as detail, r.finished_at
  from helper.workflow_runs r
  join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id
  where r.status in ('failed', 'timed_out')
    and r.workspace_id = any ((select helper.my_workspaces('member'))::uuid[]);
comment on view helper.workflow_failures is 'Runs that failed, to be looked into and redriven';

create view helper.workflow_throughput with (security_barrier) as
  select r.workspace_id, w.name as workflow, date_trunc('minute', r.created_at) as minute, count(*) as runs,
    count(*) filter (where r.status = 'succeeded') as succeeded,
    count(*) filter (where r.status in ('failed', 'timed_out')) as failed,
    percentile_cont(0.5) within group (order by extract(epoch from r.started_at - r.created_at)) as median_delay_seconds,
    percentile_cont(0.5) within group (order by extract(epoch from r.finished_at - r.started_at)) as median_seconds
  from helper.workflow_runs r
  join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id
  where r.created_at > clock_timestamp() - interval '1 day'
    and r.workspace_id = any ((select helper.my_workspaces())::uuid[])
  group by r.workspace_id, w.name, date_trunc('minute', r.created_at);
comment on view helper.workflow_throughput is 'Runs of the last day by workflow and minute';
