// What the server's replies hold (the API under /api). Times are seconds since 1970, sizes bytes.

export type Problem = { code: string; what: string; where?: string; do?: string }

export type Health = { level: 'good' | 'warn' | 'bad'; text: string; do?: string }

export type Machine = {
  system: string
  processors: number
  memory_bytes: number
  free_memory_bytes: number
  free_disk_bytes: number
  gpus: { name: string; memory_bytes: number }[]
  python: string
  packages: Record<string, string | null>
}

export type About = {
  version: string
  language: string
  root: string
  machine: Machine
  health: Health[]
}

export type Values = Record<string, unknown>

export type Recipe = {
  id: string
  icon: string
  title: string
  text: string
  minutes: number | null
  model: string
  data: string
  method: string
  objective: string
  config: Values
  questions: string[]
  page: 'train' | 'evaluate' | 'export'
}

export type Model = {
  id: string
  label: string
  where: 'known' | 'folder' | 'cache' | 'run' | 'adapter'
  bytes: number | null
  parameters: number | null
  licence: string | null
  chat: boolean
  context: number | null
  local: boolean
}

export type DataEntry = {
  id: string
  name: string
  path: string
  rows: number | null
  format: string | null
  bytes: number
  made_at: number
  kind?: 'upload' | 'workspace' | 'recipe'
}

export type Repair = { key: string; text: string; count: number }

export type Finding = {
  key?: string
  name?: string
  severity?: 'stop' | 'warn' | 'info'
  what: string
  do?: string
  count?: number
  total?: number
  places?: string[]
  fields?: Record<string, unknown>
}

export type Inspection = {
  format: string | null
  detected: { format: string; why: string }[]
  columns: string[]
  rows: number
  kept: number
  dropped: number
  rows_head: unknown[]
  report: (Record<string, unknown> & { kinds?: Record<string, unknown> }) | null
  text: string
  stops: Finding[]
  warnings: Finding[]
  repairs: Repair[]
  repair_stops?: Problem[]
}

export type Token = {
  text: string
  learnt: boolean
  weight?: number
  role: string | null
  special: boolean
  id: number
}

export type Branch = { role: string; length: number; learnt: number; tokens: Token[] }

export type Message = { role: string; content: string }

export type Preview = {
  row: number
  of: number
  kind?: string
  origin?: string
  messages: Message[]
  tokens: Token[]
  branches?: Branch[]
  rendered_by: string | null
  unused_columns?: string[]
}

export type FieldType = 'int' | 'float' | 'bool' | 'text' | 'choice' | 'list' | 'map'

export type Field = {
  key: string
  /** The label, in the language of the page. */
  title: string
  type: FieldType
  /** All values of a choice; words that a number or a text may be besides. */
  choices?: (string | number)[]
  /** What the entries of a list are. */
  of?: FieldType
  accepts?: FieldType[]
  default: unknown
  minimum?: number
  maximum?: number
  /** Bounds that are not allowed themselves. */
  above?: number
  below?: number
  optional: boolean
  required?: boolean
  text: string
  more: boolean
  path?: boolean
}

export type Section = { key: string; title: string; text: string; fields: Field[] }

export type Kind = {
  name: string
  title: string
  text: string
  about?: string
  family: string
  picture: string
  fields: Field[]
  source?: string
  package?: string
  term?: string | null
  aliases?: string[]
  /** Of methods. */
  trainable_share?: number | string | null
  peft?: boolean
  on_quantised?: boolean
  leaves_model?: boolean
  /** Of objectives: the kinds of rows it learns from, and those for which it is the usual one. */
  rows?: string[]
  row_titles?: string[]
  usual_for?: string[]
}

export type Listed = { name: string; title: string; [key: string]: unknown }

export type Schema = {
  language?: string
  sections: Section[]
  methods: Kind[]
  objectives: Kind[]
  formats: Listed[]
  rewards: Listed[]
  families?: Record<string, { key: string; title: string }[]>
}

export type Change = {
  key: string
  value: unknown
  /** Every setting of this change; `key` and `value` are the first. */
  settings?: Values
  text: string
  memory_bytes: number | null
  seconds: number | null
}

export type Plan = {
  fits: boolean | null
  memory_bytes: number | null
  available_bytes?: number | null
  by_part?: Record<string, number>
  part_titles?: Record<string, string>
  seconds: number | null
  seconds_low?: number | null
  seconds_high?: number | null
  disk_bytes?: number | null
  steps: number | null
  rows?: number | null
  trainable_parameters?: number | null
  parameters?: number | null
  device?: string
  measured?: 'runs' | 'trial' | 'rate' | 'nothing'
  lines: string[]
  problems: Problem[]
  changes?: Change[]
  command: string
  yaml: string
}

export type RunStatus =
  'running' | 'finished' | 'failed' | 'stopped' | 'paused' | 'interrupted' | 'empty' | 'pipeline'

export type RunHead = {
  id: string
  name: string
  path: string
  status: RunStatus
  started: number | null
  ended: number | null
  model: string | null
  data: string | null
  method: string | null
  objective: string | null
  steps: number | null
  total_steps: number | null
  loss: number | null
  held_out: number | null
  correct_before?: number | null
  correct_after?: number | null
  questions?: number | null
  tags: string[]
  note: string
  paused?: boolean
  job?: string | null
  /** Told by the stream when the run was moved to the trash. */
  gone?: boolean
}

export type BeforeAfter = {
  question: string
  kind?: string
  before: string | null
  after: string | null
  expected?: string | null
  correct_before?: boolean | null
  correct_after?: boolean | null
}

export type Said = { text: string; level: 'good' | 'warn' | 'bad' | 'plain' }

export type Run = RunHead & {
  config: Values
  yaml: string
  summary: Record<string, unknown> | null
  decided: { key: string; value: string; why: string }[]
  files: { name: string; bytes: number }[]
  problems: Problem[]
  verdict: (Said & { more?: Said[] }) | null
  before_after: BeforeAfter[]
  has_report: boolean
  checkpoints: { name: string; step: number; bytes: number }[]
  folder?: string
}

/** A step and a value; null where the value was no finite number. */
export type Point = [number, number | null]

export type Series = {
  keys: Record<string, Point[]>
  last_offset: number
  total: number
  thinned: boolean
}

export type JobKind =
  'train' | 'evaluate' | 'compare' | 'advise' | 'doctor' | 'export' | 'check' | 'bench'

export type JobState = 'queued' | 'running' | 'done' | 'failed' | 'stopped' | 'lost'

export type Job = {
  id: string
  kind: JobKind
  title: string
  state: JobState
  created: number
  started: number | null
  ended: number | null
  command: string
  run?: string | null
  result?: unknown
  log?: string
  problems: Problem[]
  progress?: {
    text: string
    done: number | null
    total: number | null
    left_seconds: number | null
  } | null
  /** HTML pages that the command wrote: /api/jobs/ID/page?name= */
  pages?: string[]
  /** Told by the stream when the job was removed. */
  gone?: boolean
}

export type Target = {
  id: string
  label: string
  kind: 'base' | 'run' | 'adapter' | 'export'
  base?: string | null
}
