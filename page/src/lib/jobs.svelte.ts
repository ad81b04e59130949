// All jobs as the server last told them: fetched once, kept up to date by the stream.

import { get, post } from './api'
import { hear } from './stream.svelte'
import type { Job } from './types'

let list = $state.raw<Job[]>([])
let begun = false

function put(job: Job): void {
  const rest = list.filter((one) => one.id !== job.id)
  if (job.gone) list = rest
  else list = [...rest, job].sort((a, b) => b.created - a.created)
}

export const jobs = {
  /** Newest first. */
  get list(): Job[] {
    return list
  },
  get running(): Job[] {
    return list.filter((job) => job.state === 'running')
  },
  get queued(): Job[] {
    return list.filter((job) => job.state === 'queued')
  },
  find(id: string | null | undefined): Job | undefined {
    return list.find((job) => job.id === id)
  },
}

/** Fetch the list; called by the shell once, and after the stream came back. */
export async function refreshJobs(): Promise<void> {
  if (!begun) {
    begun = true
    hear('job', put)
    hear('hello', () => void refreshJobs().catch(() => {}))
  }
  list = (await get<Job[]>('/api/jobs')).sort((a, b) => b.created - a.created)
}

/** Queue a job; throws Problems at once where its arguments are wrong. */
export async function startJob(body: Record<string, unknown>): Promise<Job> {
  const job = await post<Job>('/api/jobs', body)
  put(job)
  return job
}

export async function stopJob(id: string): Promise<void> {
  const job = await post<Job | null>(`/api/jobs/${encodeURIComponent(id)}/stop`)
  if (job?.id) put(job)
}
