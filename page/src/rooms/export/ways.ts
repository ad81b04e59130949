// The ways out and the options of each, as the form shows them.

import { t } from '../../lib/words.svelte'

export type WayName =
  | 'merge'
  | 'gguf'
  | 'adapter-gguf'
  | 'ollama'
  | 'quantize'
  | 'prune'
  | 'shrink'

export type Option = {
  key: string
  label: string
  help?: string
  kind: 'choice' | 'number' | 'text' | 'data'
  choices?: { value: string; text: string }[]
  start: string
  min?: number
  max?: number
  step?: number
  placeholder?: string
  /** Shown only when another option has this value. */
  when?: [key: string, values: string[]]
}

export const ways: { name: WayName; icon: string }[] = [
  { name: 'merge', icon: 'compare' },
  { name: 'gguf', icon: 'data' },
  { name: 'ollama', icon: 'tone' },
  { name: 'adapter-gguf', icon: 'facts' },
  { name: 'quantize', icon: 'smaller' },
  { name: 'prune', icon: 'format' },
  { name: 'shrink', icon: 'export' },
]

/** A file rather than a folder comes out of these. */
export const isFile = (way: WayName) => way === 'gguf' || way === 'adapter-gguf'

const plain = (...values: string[]) => values.map((value) => ({ value, text: value }))
const auto = () => ({ value: '', text: t('export.option.auto') })

const data = (): Option => ({
  key: 'data',
  label: t('export.option.data'),
  help: t('export.option.data.text'),
  kind: 'data',
  start: '',
})
const heal = (): Option => ({
  key: 'heal',
  label: t('export.option.heal'),
  help: t('export.option.heal.text'),
  kind: 'number',
  min: 0,
  start: '',
})

export function optionsOf(way: WayName): Option[] {
  const type: Option = {
    key: 'type',
    label: t('export.option.type'),
    help: t('export.option.type.text'),
    kind: 'choice',
    choices: plain('q8_0', 'q4_k', 'q5_k', 'q6_k', 'f16', 'bf16', 'f32'),
    start: 'q8_0',
  }
  switch (way) {
    case 'merge':
      return [
        {
          key: 'dtype',
          label: t('export.option.dtype'),
          help: t('export.option.dtype.text'),
          kind: 'choice',
          choices: [auto(), ...plain('float32', 'bfloat16', 'float16')],
          start: '',
        },
      ]
    case 'gguf':
      return [type]
    case 'adapter-gguf':
      return [{ ...type, choices: plain('f32', 'f16', 'bf16', 'q8_0'), start: 'f32' }]
    case 'ollama':
      return [
        type,
        {
          key: 'num_ctx',
          label: t('export.option.num_ctx'),
          help: t('export.option.num_ctx.text'),
          kind: 'number',
          min: 1,
          step: 1,
          start: '',
        },
      ]
    case 'quantize':
      return [
        {
          key: 'type',
          label: t('export.option.quant_type'),
          help: t('export.option.quant_type.text'),
          kind: 'choice',
          choices: ['int8', 'int4', 'nf4', 'gptq'].map((value) => ({
            value,
            text: t(`export.option.quant.${value}`),
          })),
          start: 'int8',
        },
        {
          key: 'group',
          label: t('export.option.group'),
          kind: 'choice',
          choices: plain('32', '64', '128'),
          start: '32',
          when: ['type', ['int4', 'gptq']],
        },
        data(),
      ]
    case 'prune':
      return [
        {
          key: 'way',
          label: t('export.option.way'),
          kind: 'choice',
          choices: ['wanda', 'magnitude', '2:4', 'blocks'].map((value) => ({
            value,
            text: t(`export.option.way.${value}`),
          })),
          start: 'wanda',
        },
        {
          key: 'share',
          label: t('export.option.share'),
          kind: 'number',
          min: 0.01,
          max: 0.99,
          step: 0.01,
          start: '0.5',
          when: ['way', ['wanda', 'magnitude', 'blocks']],
        },
        { ...heal() },
        data(),
      ]
    case 'shrink':
      return [
        {
          key: 'to',
          label: t('export.option.to'),
          help: t('export.option.to.text'),
          kind: 'text',
          placeholder: '400MB',
          start: '',
        },
        heal(),
        data(),
      ]
  }
}

const NUMBERS = ['group', 'share', 'num_ctx', 'heal']

/** The options of a job: what was left empty is left out. */
export function optionsFor(way: WayName, given: Record<string, string>): Record<string, unknown> {
  const made: Record<string, unknown> = {}
  for (const option of optionsOf(way)) {
    const value = (given[option.key] ?? option.start).trim()
    if (!value || !isShown(option, way, given)) continue
    made[option.key] = NUMBERS.includes(option.key) ? Number(value) : value
  }
  return made
}

export function isShown(option: Option, way: WayName, given: Record<string, string>): boolean {
  if (!option.when) return true
  const [key, values] = option.when
  const other = optionsOf(way).find((one) => one.key === key)
  return values.includes(given[key] ?? other?.start ?? '')
}
