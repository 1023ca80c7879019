"""AWS: what an account needs before `ray up`, and what can be known of a cluster file before it costs anything."""
