"""Tests of the tables, figures and reports of hf_deit.inspection."""
