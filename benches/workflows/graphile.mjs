// graphile-worker as a peer: `graphile.mjs URL migrate|batched|single`. Both kinds of worker say `ready` and work until their
// input ends; jobs do nothing, ask the server for a row, or tell. `batched` has the settings that its makers measure throughput with; `single` has its defaults, and prints for
// each job the milliseconds since the time in its payload.
import { createRequire } from 'node:module'

const { Logger, run, runMigrations } = createRequire(process.env.PEER + '/')('graphile-worker')
const [connectionString, mode] = process.argv.slice(2)
const logger = new Logger(() => () => {})
const batched = { concurrentJobs: 24, maxPoolSize: 25, localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 }

if (mode === 'migrate') {
  await runMigrations({ connectionString, logger })
} else {
  const worker = { connectionString, ...(mode === 'batched' ? batched : {}) }
  const taskList = {
    noop: async () => {},
    query: async (_, { query }) => query('select 1'),
    tell: async ({ sent }) => console.log(performance.timeOrigin + performance.now() - sent),
  }
  const runner = await run({ preset: { worker }, logger, noHandleSignals: true, taskList })
  console.log('ready')
  process.stdin.resume().on('end', () => runner.stop())
}
