// Where the result of a job is shown.
import { href } from '../../lib/route.svelte'
import type { Job } from '../../lib/types'

export function placeOf(job: Job): string | undefined {
  if (job.kind === 'train') return job.run ? href('runs', job.run) : undefined
  if (job.kind === 'compare' || job.kind === 'evaluate') return href('evaluate', '', { job: job.id })
  if (job.kind === 'advise' || job.kind === 'doctor' || job.kind === 'export') {
    return href(job.kind, '', { job: job.id })
  }
  return undefined
}
