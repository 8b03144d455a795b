"""From records to static pages. Never imports torch."""
