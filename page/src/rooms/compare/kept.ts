// What the compare screen keeps in the browser: columns, settings and the conversation, so that a
// reload forgets nothing.

import type { Column, Settings, Turn } from './conversation.svelte'

const KEY = 'tunewright.compare'
const MOST = 1_500_000

export type Kept = {
  columns: Column[]
  settings: Settings
  conversation: { root: { next: Turn[]; chosen: number }; counter: number }
  draft: string
}

export function readKept(): Kept | null {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? 'null') as Kept | null
    const whole =
      Array.isArray(kept?.columns) && Array.isArray(kept?.conversation?.root?.next) && kept.settings
    return whole ? kept : null
  } catch {
    return null
  }
}

export function keep(value: unknown): void {
  try {
    const text = JSON.stringify(value)
    if (text.length <= MOST) localStorage.setItem(KEY, text)
  } catch {
    // A full or closed storage costs only the memory of this conversation.
  }
}
