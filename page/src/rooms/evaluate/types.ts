// What `evaluate --json` and `compare --json` hold, as far as the page shows it.

export type Range = [number, number] | null

export type Figure = {
  value: number
  interval_95: Range
  n: number
  scale: number
  left_out: number
}

export type Classes = {
  answer: string
  rows: number
  chosen: number
  precision: number | null
  precision_interval_95: Range
  recall: number | null
  recall_interval_95: Range
  f1: number | null
}

export type Options = {
  options: string[]
  n: number
  accuracy: number
  interval_95: Range
  majority: { answer: string; share: number }
  beats_majority: boolean
  classes: Classes[]
  macro_f1: number | null
  macro_f1_interval_95: Range
  confusion: Record<string, Record<string, number>>
  calibration?: {
    ece: number
    by_chance_95: number
    mean_confidence: number
    accuracy: number
    bins: Bin[]
  } | null
  mistakes: { origin: string; answer: string; chosen: string; margin: number }[]
}

export type Bin = {
  from: number
  to: number
  rows: number
  confidence: number
  accuracy: number
  interval_95: Range
}

export type KeptAnswer = {
  origin: string
  question: string
  expected: string | null
  answer: string
  end?: string
  scores?: Record<string, number | null>
}

export type Evaluation = {
  target: string
  model: string
  data: string
  data_report?: { rows_read: number; rows_kept: number; rows_dropped: number }
  loss?: { token_mean: number; interval_95: Range; perplexity: number; perplexity_interval_95: Range; rows: number } | null
  options?: Options | null
  exact_match?: { mistakes: { origin: string; expected: string; answer: string }[] } | null
  metrics?: Record<string, Figure>
  counts?: { rows: number }
  dtype: string
  device: string
  warnings: string[]
  seconds: { total: number }
}

export type Subject = {
  name: string
  target: string
  is_base: boolean
  figures: Record<string, Figure>
  loss: { token_mean: number } | null
  bytes_on_disk: number | null
  memory_bytes: number | null
  tokens_per_second: number | null
  seconds_per_answer: number | null
}

export type Difference = {
  difference: number
  low: number
  high: number
  wins: number
  losses: number
  ties: number
}

export type Comparison = {
  data: string
  rows_read: number
  n: number
  metrics: string[]
  subjects: Subject[]
  pairs: {
    a: string
    b: string
    same_answers: number
    differences: Record<string, Difference>
    loss: Difference | null
    no_difference: boolean
  }[]
  base_check: { column: string; places: number; largest_logit_difference: number } | null
  rows: {
    origin: string
    question: string
    expected: string | null
    answers: string[]
    scores: Record<string, (number | null)[]>
    same: boolean
  }[]
  warnings: string[]
  seconds: number
}

export function isComparison(result: unknown): result is Comparison {
  return typeof result === 'object' && result !== null && 'subjects' in result
}

/** A name with paths cut to their last part, for a heading; the whole stands in its title. */
export function short(name: string): string {
  return name.replace(/(^|\s)(?:\/[^\s/]+)+/g, (path, before) => before + path.split('/').pop())
}
