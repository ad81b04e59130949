// Something fetched for a screen: its value, whether it is on its way, and what went wrong.
//
//   const runs = load(() => get<RunHead[]>(`/api/runs?search=${search}`))
//   {#if runs.problems.length} <Problems .../> {:else if runs.value} ... {:else} <Loading />
//
// What the function reads before its first `await` is watched: it runs again when that changes, and
// when the language does, because texts in replies come in the page's language.

import { problemsOf } from './api'
import type { Problem } from './types'
import { lang } from './words.svelte'

export function load<T>(fetcher: (signal: AbortSignal) => Promise<T> | null) {
  let value = $state.raw<T | null>(null)
  let problems = $state.raw<Problem[]>([])
  let loading = $state(true)
  let again = $state(0)

  $effect(() => {
    void lang.code
    void again
    const stop = new AbortController()
    const asked = fetcher(stop.signal)
    if (asked === null) {
      loading = false
      return
    }
    loading = true
    asked
      .then((got) => {
        if (stop.signal.aborted) return
        value = got
        problems = []
        loading = false
      })
      .catch((error: unknown) => {
        if (stop.signal.aborted) return
        problems = problemsOf(error)
        loading = false
      })
    return () => stop.abort()
  })

  return {
    get value(): T | null {
      return value
    },
    set value(next: T | null) {
      value = next
    },
    get problems(): Problem[] {
      return problems
    },
    get loading(): boolean {
      return loading
    },
    /** Fetch again; the old value stays until the new one is there. */
    again(): void {
      again += 1
    },
  }
}
