// The colour of a state.
import type { JobState } from '../../lib/types'

export type Level = 'plain' | 'good' | 'warn' | 'bad' | 'accent'

export const levels: Record<JobState, Level> = {
  queued: 'plain',
  running: 'accent',
  done: 'good',
  failed: 'bad',
  stopped: 'warn',
  lost: 'bad',
}

export const runLevels: Record<string, Level> = {
  running: 'accent',
  finished: 'good',
  failed: 'bad',
  stopped: 'warn',
  paused: 'warn',
  interrupted: 'warn',
  empty: 'plain',
  pipeline: 'plain',
}
