"""A fleet on one machine: embedded servers, the process runner, the home folder. Imports db and shared; worker only lazily."""
