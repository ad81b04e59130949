// Numbers for people, in the page's language. Callers in a template are reactive to the language.

import { lang, t } from './words.svelte'

const NONE = '–'

/** 1,234.5; at most `digits` after the point. */
export function number(value: number | null | undefined, digits = 0): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE
  return value.toLocaleString(lang.locale, { maximumFractionDigits: digits })
}

/** A loss, a rate, a norm: three significant digits, 2e-4 when it is small. */
export function figure(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return number(value)
  const size = Math.abs(value)
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace('e+', 'e')
  if (size >= 1000) return number(value)
  return value.toPrecision(size >= 100 ? 4 : 3)
}

/** 0.42 -> 42 %. */
export function percent(share: number | null | undefined, digits = 0): string {
  if (share === null || share === undefined || !Number.isFinite(share)) return NONE
  const value = (share * 100).toLocaleString(lang.locale, { maximumFractionDigits: digits })
  return lang.code === 'zh' ? `${value}%` : `${value} %`
}

/** 1.3 GB; powers of 1024, as memory is counted. */
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE
  const units = ['B', 'KB', 'MB', 'GB', 'TB']
  let size = Math.abs(value)
  let unit = 0
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1024
    unit += 1
  }
  const digits = unit === 0 || size >= 100 ? 0 : size >= 10 ? 0 : 1
  return `${number(Math.sign(value) * size, digits)} ${units[unit]}`
}

/** 135M, 1.2B parameters. */
export function parameters(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE
  if (value >= 1e9) return `${number(value / 1e9, value >= 1e10 ? 0 : 1)}B`
  if (value >= 1e6) return `${number(value / 1e6)}M`
  if (value >= 1e3) return `${number(value / 1e3)}K`
  return number(value)
}

/** 3 min 20 s; 45 s; 2 h 5 min. */
export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE
  const whole = Math.max(0, Math.round(value))
  if (whole < 60) return t('time.s', { s: String(whole) })
  const minutes = Math.floor(whole / 60)
  if (minutes < 60) {
    const rest = whole % 60
    if (minutes >= 10 || rest === 0) return t('time.m', { m: String(Math.round(whole / 60)) })
    return t('time.ms', { m: String(minutes), s: String(rest) })
  }
  const hours = Math.floor(minutes / 60)
  if (hours < 48) return t('time.hm', { h: String(hours), m: String(minutes % 60) })
  return t('time.d', { d: String(Math.round(hours / 24)) })
}

/** 'about 3 min' said loosely: rounded so that it does not flicker. */
export function roughly(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE
  if (value >= 60 && value < 600) return seconds(Math.round(value / 10) * 10)
  if (value < 60) return seconds(value < 10 ? value : Math.round(value / 5) * 5)
  return seconds(value)
}

/** A day and a time; only the time when it is today. */
export function when(time: number | null | undefined): string {
  if (!time) return NONE
  const date = new Date(time * 1000)
  const now = new Date()
  const clock: Intl.DateTimeFormatOptions = { hour: '2-digit', minute: '2-digit' }
  if (date.toDateString() === now.toDateString()) {
    return t('time.today', { time: date.toLocaleTimeString(lang.locale, clock) })
  }
  const year = date.getFullYear() === now.getFullYear() ? {} : { year: 'numeric' as const }
  return date.toLocaleString(lang.locale, { ...year, month: 'short', day: 'numeric', ...clock })
}

/** The clock alone, with seconds: for lines of a log. */
export function clock(time: number | null | undefined): string {
  if (!time) return NONE
  return new Date(time * 1000).toLocaleTimeString(lang.locale, { hour12: false })
}
