// The lists of models, data and runs as choices of a Picker.

import { bytes, parameters, when } from '../../lib/format'
import type { DataEntry, Model, RunHead } from '../../lib/types'
import { known, t } from '../../lib/words.svelte'
import type { Choice } from '../../parts/Picker.svelte'

export function dataChoices(entries: DataEntry[] | null): Choice[] {
  return (entries ?? []).map((one) => ({
    id: one.id,
    label: one.name,
    text: [
      one.rows === null ? '' : t('evaluate.rows_of', { count: one.rows }),
      one.format ?? '',
      bytes(one.bytes),
    ]
      .filter(Boolean)
      .join(' · '),
  }))
}

export function modelChoices(models: Model[] | null): Choice[] {
  return (models ?? []).map((one) => ({
    id: one.id,
    label: one.label,
    group: known(`compare.where.${one.where}`) ? t(`compare.where.${one.where}`) : undefined,
    text: [
      one.parameters ? parameters(one.parameters) : '',
      one.bytes ? bytes(one.bytes) : '',
      one.licence ?? '',
    ]
      .filter(Boolean)
      .join(' · '),
  }))
}

export function runChoices(runs: RunHead[] | null): Choice[] {
  return (runs ?? [])
    .filter((run) => run.status !== 'empty' && run.status !== 'pipeline')
    .map((run) => ({
      id: run.id,
      label: run.name,
      text: [run.method ?? '', run.model ?? '', when(run.started)].filter(Boolean).join(' · '),
      badge: run.status === 'finished' ? undefined : t(`runs.status.${run.status}`),
    }))
}

