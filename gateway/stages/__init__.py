"""The four stages of the flow, one file each: RECEIVE, STORE, COMPOSE, SUBMIT."""
