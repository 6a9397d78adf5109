"""Figures as a page embeds them: small vector plots in the page's own colours, and pictures."""
