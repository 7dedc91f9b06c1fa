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
comment on column helper.workflow_activity.workspace_id is 'The workspace';
comment on column helper.workflow_activity.id is 'The run';
comment on column helper.workflow_activity.workflow_id is 'Its workflow';
comment on column helper.workflow_activity.workflow is 'The workflow''s name';
comment on column helper.workflow_activity.version is 'Version of the workflow that it is a run of';
comment on column helper.workflow_activity.status is 'Its state';
comment on column helper.workflow_activity.trigger is 'What kind of thing started it';
comment on column helper.workflow_activity.error_code is 'SQLSTATE that it failed with';
comment on column helper.workflow_activity.depth is 'How many workflows led to it';
comment on column helper.workflow_activity.replay_of is 'The run that it repeats';
comment on column helper.workflow_activity.user_id is 'Who started it by hand';
comment on column helper.workflow_activity.created_at is 'When it was asked for';
comment on column helper.workflow_activity.started_at is 'When it began';
comment on column helper.workflow_activity.finished_at is 'When it ended';
comment on column helper.workflow_activity.duration is 'How long it took, or has taken so far';

create view helper.workflow_step_activity with (security_barrier) as
  select s.workspace_id, s.run_id, s.step, nullif(s.item, -1) as item, s.status, s.attempt, s.error ->> 'sqlstate' as error_code,
    s.started_at, s.finished_at, s.finished_at - s.started_at as duration, u.tokens, u.cost
  from helper.workflow_steps s
  left join lateral (
    select sum(coalesce(x.input_tokens, 0) + coalesce(x.output_tokens, 0)) as tokens, sum(x.cost) as cost
    from helper.usage_records x
    where x.workspace_id = s.workspace_id
      and x.message_id in (
        select m.message_id
        from helper.workflow_step_messages m
        where m.workspace_id = s.workspace_id and m.run_id = s.run_id and m.step = s.step and m.item = s.item)
  ) u on true
  where s.workspace_id = any ((select helper.my_workspaces())::uuid[]);
comment on view helper.workflow_step_activity is 'Steps of those runs: status, attempts, times, and the tokens and cost of model calls';
comment on column helper.workflow_step_activity.workspace_id is 'The workspace';
comment on column helper.workflow_step_activity.run_id is 'The run';
comment on column helper.workflow_step_activity.step is 'The step''s name';
comment on column helper.workflow_step_activity.item is 'Number of the item of a map, from 0; null: the step itself';
comment on column helper.workflow_step_activity.status is 'Its state';
comment on column helper.workflow_step_activity.attempt is 'Counts from 1; 0: it never began';
comment on column helper.workflow_step_activity.error_code is 'SQLSTATE that it failed with';
comment on column helper.workflow_step_activity.started_at is 'When this attempt began';
comment on column helper.workflow_step_activity.finished_at is 'When it ended';
comment on column helper.workflow_step_activity.duration is 'How long this attempt took';
comment on column helper.workflow_step_activity.tokens is 'Tokens that its model calls took, both ways: of all attempts, and of replies that were sent back';
comment on column helper.workflow_step_activity.cost is 'What these cost';

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
comment on column helper.workflow_waiting.workspace_id is 'The workspace';
comment on column helper.workflow_waiting.run_id is 'The run';
comment on column helper.workflow_waiting.workflow is 'The workflow''s name';
comment on column helper.workflow_waiting.step is 'The step''s name';
comment on column helper.workflow_waiting.item is 'Number of the item of a map, from 0; null: the step itself';
comment on column helper.workflow_waiting.waits_for is 'call, reply, run, event or time';
comment on column helper.workflow_waiting.subject is 'The call, reply or run that it waits for, or the event''s name';
comment on column helper.workflow_waiting.wake_at is 'When it goes on at the latest';
comment on column helper.workflow_waiting.since is 'Since when it waits';

create view helper.workflow_failures with (security_barrier) as
  select r.workspace_id, r.id as run_id, w.name as workflow, r.version, r.status, r.error ->> 'step' as step,
    r.error ->> 'sqlstate' as error_code, r.error ->> 'message' as message, r.error ->> 'detail' as detail, r.finished_at
  from helper.workflow_runs r
  join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id
  where r.status in ('failed', 'timed_out')
    and r.workspace_id = any ((select helper.my_workspaces('member'))::uuid[]);
comment on view helper.workflow_failures is 'Runs that failed, to be looked into and redriven';
comment on column helper.workflow_failures.workspace_id is 'The workspace';
comment on column helper.workflow_failures.run_id is 'The run';
comment on column helper.workflow_failures.workflow is 'The workflow''s name';
comment on column helper.workflow_failures.version is 'Version of the workflow that it is a run of';
comment on column helper.workflow_failures.status is 'failed or timed_out';
comment on column helper.workflow_failures.step is 'The step that it failed by; null: the run itself';
comment on column helper.workflow_failures.error_code is 'SQLSTATE';
comment on column helper.workflow_failures.message is 'What went wrong';
comment on column helper.workflow_failures.detail is 'Facts about it';
comment on column helper.workflow_failures.finished_at is 'When it ended';

create view helper.workflow_throughput with (security_barrier) as
  select r.workspace_id, w.name as workflow, date_trunc('minute', r.created_at) as minute, count(*) as runs,
    count(*) filter (where r.status = 'succeeded') as succeeded,
    count(*) filter (where r.status in ('failed', 'timed_out')) as failed,
    percentile_cont(0.5) within group (order by extract(epoch from r.started_at - r.created_at)) as median_delay_seconds,
    percentile_cont(0.5) within group (order by extract(epoch from r.finished_at - r.started_at)) as median_seconds
  from helper.workflow_runs r
  join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id
  where r.id >= (select helper.uuid_v7_at(clock_timestamp() - interval '1 day'))
    and r.workspace_id = any ((select helper.my_workspaces())::uuid[])
  group by r.workspace_id, w.name, date_trunc('minute', r.created_at);
comment on view helper.workflow_throughput is 'Runs of the last day by workflow and minute';
comment on column helper.workflow_throughput.workspace_id is 'The workspace';
comment on column helper.workflow_throughput.workflow is 'The workflow''s name';
comment on column helper.workflow_throughput.minute is 'The minute in which the runs were asked for';
comment on column helper.workflow_throughput.runs is 'How many there were';
comment on column helper.workflow_throughput.succeeded is 'How many of them succeeded';
comment on column helper.workflow_throughput.failed is 'How many of them failed or timed out';
comment on column helper.workflow_throughput.median_delay_seconds is 'Median time until they began';
comment on column helper.workflow_throughput.median_seconds is 'Median time from there to their end';
