// The fields of the form and the job that they ask for.

export type EvaluateForm = {
  targets: string[]
  data: string
  base: boolean
  generate: boolean
  limit: string
  metrics: string[]
  options: string
  max_new_tokens: string
  think: 'auto' | 'on' | 'off'
}

export const metrics = [
  'exact',
  'normalised',
  'contains',
  'number',
  'f1',
  'bleu',
  'chrf',
  'rouge1',
  'rouge2',
  'rougeL',
  'json',
  'json_equal',
]

export function emptyForm(): EvaluateForm {
  return {
    targets: [''],
    data: '',
    base: false,
    generate: true,
    limit: '200',
    metrics: [],
    options: '',
    max_new_tokens: '',
    think: 'auto',
  }
}

/** One model is evaluated; several, or one beside its base, are compared row by row. */
export function jobOf(form: EvaluateForm): Record<string, unknown> {
  const targets = form.targets.filter(Boolean)
  const several = targets.length > 1 || form.base
  const body: Record<string, unknown> = { kind: several ? 'compare' : 'evaluate', data: form.data }
  if (several) {
    body.targets = targets
    if (form.base) body.base = true
  } else {
    body.target = targets[0]
    body.generate = form.generate
    if (form.options.trim()) body.options = form.options.trim()
  }
  if (form.limit.trim()) body.limit = Number(form.limit)
  if (form.max_new_tokens.trim()) body.max_new_tokens = Number(form.max_new_tokens)
  if (form.metrics.length && (several || form.generate)) body.metrics = form.metrics.join(',')
  if (form.think !== 'auto') body.think = form.think === 'on'
  return body
}
