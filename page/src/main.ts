import { mount } from 'svelte'
import App from './App.svelte'
import './app.css'
import './lib/theme.svelte'
import { firstLanguage, setLanguage } from './lib/words.svelte'

// Text in the right language from the first paint on.
await setLanguage(firstLanguage())
mount(App, { target: document.getElementById('app')! })
