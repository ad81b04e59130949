// Every screen by the first part of its address. Each is its own file, fetched when first opened.
import type { Component } from 'svelte'

export type Screen = () => Promise<{ default: Component }>

export const screens: Record<string, Screen> = {
  home: () => import('./screens/Home.svelte'),
  data: () => import('./screens/Data.svelte'),
  train: () => import('./screens/Train.svelte'),
  run: () => import('./screens/Run.svelte'),
  runs: () => import('./screens/Runs.svelte'),
  queue: () => import('./screens/Queue.svelte'),
  compare: () => import('./screens/Compare.svelte'),
  evaluate: () => import('./screens/Evaluate.svelte'),
  advise: () => import('./screens/Advise.svelte'),
  doctor: () => import('./screens/Doctor.svelte'),
  export: () => import('./screens/Export.svelte'),
  learn: () => import('./screens/Learn.svelte'),
}

export type Place = { name: string; icon: string; group: 'do' | 'look' | 'know' }

/** The places of the side bar, in order. The words are `nav.<name>`. */
export const places: Place[] = [
  { name: 'home', icon: 'home', group: 'do' },
  { name: 'data', icon: 'data', group: 'do' },
  { name: 'train', icon: 'train', group: 'do' },
  { name: 'runs', icon: 'runs', group: 'do' },
  { name: 'compare', icon: 'compare', group: 'do' },
  { name: 'evaluate', icon: 'evaluate', group: 'look' },
  { name: 'doctor', icon: 'doctor', group: 'look' },
  { name: 'export', icon: 'export', group: 'look' },
  { name: 'advise', icon: 'advise', group: 'know' },
  { name: 'learn', icon: 'learn', group: 'know' },
  { name: 'queue', icon: 'queue', group: 'know' },
]

/** `#/runs/ID` is one run, `#/runs` the list of all. */
export function screenOf(name: string, id: string): string | null {
  if (name === 'runs' && id) return 'run'
  return name in screens && name !== 'run' ? name : null
}
