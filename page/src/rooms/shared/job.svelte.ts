// One job as it is now: its head from the stream, its result and log fetched when its state changes.

import { get } from '../../lib/api'
import { jobs } from '../../lib/jobs.svelte'
import { load } from '../../lib/load.svelte'
import type { Job, JobKind, Problem } from '../../lib/types'

export function followJob(id: () => string | null) {
  const whole = load((signal) => {
    const wanted = id()
    // Watched: another state is another answer.
    void jobs.find(wanted)?.state
    return wanted ? get<Job>(`/api/jobs/${encodeURIComponent(wanted)}`, { signal }) : null
  })
  const job = $derived.by<Job | null>(() => {
    const wanted = id()
    if (!wanted) return null
    const fetched = whole.value?.id === wanted ? whole.value : null
    const live = jobs.find(wanted) ?? null
    if (!fetched) return live
    return live ? { ...fetched, ...live, result: fetched.result, log: fetched.log } : fetched
  })
  return {
    get job(): Job | null {
      return job
    },
    get problems(): Problem[] {
      return id() ? whole.problems : []
    },
    get loading(): boolean {
      return whole.loading && job === null
    },
    again(): void {
      whole.again()
    },
  }
}

export function isOver(job: Job | null | undefined): boolean {
  return !!job && job.state !== 'queued' && job.state !== 'running'
}

/** What a job of these kinds measured; null as long as there is nothing, and for other jobs, which
 * an address may name. */
export function resultOf<T>(job: Job | null, ...kinds: JobKind[]): T | null {
  return job?.state === 'done' && job.result && kinds.includes(job.kind) ? (job.result as T) : null
}
