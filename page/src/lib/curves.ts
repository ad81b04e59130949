// Arithmetic of curves, apart from how they are drawn.

import type { Point } from './types'

/** Exponential mean with the correction for its start; `weight` 0 changes nothing, 0.99 a lot. */
export function smooth(points: Point[], weight: number): Point[] {
  if (weight <= 0) return points
  let mean = 0
  let total = 0
  return points.map(([x, y]) => {
    if (y === null || !Number.isFinite(y)) return [x, null]
    mean = mean * weight + y * (1 - weight)
    total = total * weight + (1 - weight)
    return [x, mean / total]
  })
}

/** One step's value at its place; a step that came before (after a resume) takes the new value. */
export function put(points: Point[], x: number, y: number | null): void {
  let at = points.length
  while (at > 0 && points[at - 1]![0] > x) at -= 1
  if (at > 0 && points[at - 1]![0] === x) points[at - 1] = [x, y]
  else points.splice(at, 0, [x, y])
}

/** Curves as CSV: the x of all, a column each. */
export function csv(lines: { label: string; points: Point[] }[], xLabel: string): string {
  const rows = new Map<number, (number | '')[]>()
  lines.forEach((line, column) => {
    for (const [x, y] of line.points) {
      const row = rows.get(x) ?? lines.map((): number | '' => '')
      row[column] = y ?? ''
      rows.set(x, row)
    }
  })
  const quoted = (text: string) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)
  const head = [xLabel, ...lines.map((line) => line.label)].map(quoted).join(',')
  const body = [...rows].sort((a, b) => a[0] - b[0]).map(([x, row]) => [x, ...row].join(','))
  return [head, ...body].join('\n') + '\n'
}

const PLAIN = [
  'loss',
  'learning_rate',
  'gradient_norm',
  'tokens_per_second',
  'seconds',
  'memory_bytes',
]

/** The points that one line of events.jsonl gives, by the keys of `/series`. */
export function figuresOf(event: Record<string, unknown>): Record<string, number | null> {
  const found: Record<string, unknown> = {}
  const inner = (name: string, prefix: string) => {
    const values = event[name]
    if (!values || typeof values !== 'object' || Array.isArray(values)) return
    for (const [key, value] of Object.entries(values)) found[prefix + key] = value
  }
  if (event.event === 'step') {
    for (const key of PLAIN) found[key] = event[key]
    inner('terms', 'terms.')
    inner('figures', '')
  } else if (event.event === 'evaluation') {
    found.held_out_loss = event.held_out_loss
    inner('figures', 'held_out.')
  }
  const numbers: Record<string, number | null> = {}
  for (const [key, value] of Object.entries(found)) {
    // "NaN" and "inf" are written as words; they are a point without a value.
    if (typeof value === 'number') numbers[key] = Number.isFinite(value) ? value : null
    else if (typeof value === 'string' && /^-?(nan|inf(inity)?)$/i.test(value)) numbers[key] = null
  }
  return numbers
}
