"""How the steps are taken. Trees and passes are pure integers; torch comes in with `policy`."""
