"""The demo grammar: words, their inflection, clauses and sentences in English and German."""
