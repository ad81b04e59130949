// What can be asked questions: runs, bases, adapters and exports, fetched once for all choosers.

import { get } from '../../lib/api'
import { load } from '../../lib/load.svelte'
import type { Target } from '../../lib/types'
import { t } from '../../lib/words.svelte'

/** One column of a comparison: a target, or the base that it was trained from. */
export type Pick = { target: string; base: boolean }

export type Choice = Pick & { value: string; label: string; group: string }

export const groups = ['run', 'base', 'adapter', 'export'] as const

export function loadTargets() {
  return load((signal) => get<Target[]>('/api/chat/targets', { signal }))
}

export function valueOf(pick: Pick): string {
  return `${pick.base ? 'base' : 'self'}:${pick.target}`
}

export function pickOf(value: string): Pick {
  const at = value.indexOf(':')
  return { target: value.slice(at + 1), base: value.slice(0, at) === 'base' }
}

/** Every target and, for what was trained, its base as a choice of its own. */
export function choices(targets: Target[]): Choice[] {
  return targets.flatMap((target) => {
    const self = { target: target.id, base: false }
    const made: Choice[] = [
      { ...self, value: valueOf(self), label: target.label, group: target.kind },
    ]
    if (target.base && (target.kind === 'run' || target.kind === 'adapter')) {
      const base = { target: target.id, base: true }
      const label = t('compare.base_of', { name: target.label })
      made.push({ ...base, value: valueOf(base), label, group: target.kind })
    }
    return made
  })
}

export function nameOf(pick: Pick, targets: Target[]): string {
  const found = targets.find((target) => target.id === pick.target)
  if (!found) return pick.target
  return pick.base ? t('compare.base_of', { name: found.label }) : found.label
}
