// Where the page is: #/name/id?key=value. `route` is reactive.

export type Query = Record<string, string>

type Place = { name: string; id: string; query: Query }

function read(): Place {
  const [path = '', search = ''] = location.hash.replace(/^#\/?/, '').split('?', 2)
  const [name = '', ...rest] = path.split('/')
  const query: Query = {}
  for (const [key, value] of new URLSearchParams(search)) query[key] = value
  let id = rest.join('/')
  try {
    id = decodeURIComponent(id)
  } catch {
    // A hand-written address with a bad escape names nothing; show it as it is.
  }
  return { name: name || 'home', id, query }
}

let place = $state.raw<Place>(read())
window.addEventListener('hashchange', () => (place = read()))

export const route = {
  /** First part: 'home', 'train', 'runs'... */
  get name(): string {
    return place.name
  },
  /** What follows the name, decoded; '' without. */
  get id(): string {
    return place.id
  },
  get query(): Query {
    return place.query
  },
}

/** The address of a place, for `href`. */
export function href(name: string, id = '', query: Query = {}): string {
  const search = new URLSearchParams(query).toString()
  const path = id ? `${name}/${encodeURIComponent(id)}` : name
  return `#/${path}${search ? `?${search}` : ''}`
}

export function go(name: string, id = '', query: Query = {}): void {
  location.hash = href(name, id, query)
}

/** Change the query of the place without a step in the browser's history. */
export function replaceQuery(query: Query): void {
  history.replaceState(null, '', href(place.name, place.id, query))
  place = read()
}
