"""How a task is defended: one file each, acting at collect, train, deploy or recover."""
