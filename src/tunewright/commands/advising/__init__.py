"""What `advise` measures with: passages of documents, questions to tables, prompts and answers."""
