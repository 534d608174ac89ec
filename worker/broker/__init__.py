"""Between the broker and Celery: checks of messages, changes to Celery and kombu, RabbitMQ, reply lists."""
