// Searching, filtering and sorting of the list of runs, apart from how it is shown.

import type { RunHead } from '../../lib/types'

export type Sort = { key: SortKey; down: boolean }
export type SortKey =
  | 'name'
  | 'status'
  | 'model'
  | 'method'
  | 'steps'
  | 'loss'
  | 'held_out'
  | 'right'
  | 'started'
  | 'took'

export function right(run: RunHead): number | null {
  if (!run.questions || run.correct_after === null || run.correct_after === undefined) return null
  return run.correct_after / run.questions
}

export function took(run: RunHead): number | null {
  if (!run.started) return null
  if (run.ended) return run.ended - run.started
  return run.status === 'running' ? Date.now() / 1000 - run.started : null
}

function value(run: RunHead, key: SortKey): string | number | null {
  switch (key) {
    case 'right':
      return right(run)
    case 'took':
      return took(run)
    default:
      return run[key] ?? null
  }
}

/** What has no value stands last, whichever way is sorted. */
export function sorted(runs: RunHead[], sort: Sort): RunHead[] {
  const sign = sort.down ? -1 : 1
  return [...runs].sort((a, b) => {
    const [x, y] = [value(a, sort.key), value(b, sort.key)]
    if (x === null || y === null) return Number(x === null) - Number(y === null)
    if (typeof x === 'string') return sign * x.localeCompare(String(y))
    return sign * (x - Number(y))
  })
}

export function matches(run: RunHead, search: string, status: string, tag: string): boolean {
  if (status && run.status !== status) return false
  if (tag && !run.tags.includes(tag)) return false
  const text = [
    run.name,
    run.model,
    run.data,
    run.method,
    run.objective,
    run.note,
    run.path,
    ...run.tags,
  ]
    .join(' ')
    .toLowerCase()
  return search
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word))
}

export function tagsOf(runs: RunHead[]): string[] {
  return [...new Set(runs.flatMap((run) => run.tags))].sort((a, b) => a.localeCompare(b))
}

/** The last part of a path or hub id. */
export function short(name: string | null): string {
  if (!name) return '–'
  const parts = name.split('/').filter(Boolean)
  return parts[parts.length - 1] ?? name
}

export function written(value: unknown): string {
  if (value === null || value === undefined) return ''
  if (typeof value === 'object') return JSON.stringify(value)
  return String(value)
}
