// Which curves stand in which chart.

import { bytes, figure, number } from '../../lib/format'
import type { Point } from '../../lib/types'
import { known, t } from '../../lib/words.svelte'
import type { Line } from '../../parts/Chart.svelte'

export type Group = {
  id: string
  title: string
  lines: Line[]
  format: (value: number) => string
  /** Stands over the whole width. */
  large?: boolean
}

/** A name for a key: from the words of the page, else the key itself. */
export function nameOf(key: string): string {
  if (known(`curve.${key}`)) return t(`curve.${key}`)
  return key.replace(/^(terms|held_out)\./, '').replaceAll('_', ' ')
}

const HELD_OUT = 'held_out.'
const FIRST = ['learning_rate', 'gradient_norm', 'tokens_per_second', 'memory_bytes']

export function groupsOf(keys: Record<string, Point[]>): Group[] {
  const line = (key: string, more: Partial<Line> = {}): Line[] =>
    keys[key]?.length ? [{ key, label: nameOf(key), points: keys[key], ...more }] : []
  const groups: Group[] = [
    {
      id: 'loss',
      title: t('curve.loss'),
      large: true,
      format: figure,
      lines: [
        ...line('loss', { label: t('curve.training') }),
        ...line('held_out_loss', { label: t('curve.held_out'), exact: true, colour: '--c1' }),
      ],
    },
  ]
  for (const key of FIRST) {
    const format = key === 'memory_bytes' ? bytes : key === 'tokens_per_second' ? number : figure
    const plain = key === 'learning_rate' || key === 'memory_bytes'
    groups.push({ id: key, title: nameOf(key), lines: line(key, { plain }), format })
  }
  const terms = Object.keys(keys).filter((key) => key.startsWith('terms.'))
  if (terms.length > 1) {
    const lines = terms.flatMap((key) => line(key))
    groups.push({ id: 'terms', title: t('curve.terms'), lines, format: figure })
  }
  const taken = new Set(['loss', 'held_out_loss', 'seconds', ...FIRST, ...terms])
  const figures = Object.keys(keys).filter((key) => !taken.has(key))
  const names = [...new Set(figures.map((key) => key.replace(HELD_OUT, '')))].sort()
  for (const name of names) {
    groups.push({
      id: name,
      title: nameOf(name),
      format: figure,
      lines: [
        ...line(name, { label: t('curve.training') }),
        ...line(HELD_OUT + name, { label: t('curve.held_out'), exact: true, colour: '--c1' }),
      ],
    })
  }
  return groups.filter((group) => group.lines.length > 0)
}
